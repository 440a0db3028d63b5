"""Control tokens that a tokenizer is trained with: single ids that no text can make.

They are grouped by the kinds of corpora that use them; recipes write these names (`corpus/kinds/`).

Source: Li et al. 2023 (StarCoder, arXiv 2305.06161), sections 3 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from megacode.base.errors import ConfigError
from megacode.config.suggestions import did_you_mean

END = "<|endoftext|>"
_OF_FILES = ("<reponame>", "<filename>", "<gh_stars>")
# Their order decides ids, so new ones go to the end.
GROUPS = {
    "fim": ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    "commits": ("<commit_before>", "<commit_msg>", "<commit_after>"),
    "notebooks": (
        "<jupyter_start>",
        "<jupyter_text>",
        "<jupyter_code>",
        "<jupyter_output>",
        "<empty_output>",
        "<jupyter_script>",
    ),
    "stackexchange": ("<issue_start>", "<issue_comment>", "<issue_closed>"),
    "code": _OF_FILES,
    "markup": _OF_FILES,
}
_TOKEN = re.compile(r"<[\w|.:/-]*[A-Za-z][\w|.:/-]*>", re.ASCII)
# Names that sentencepiece gives to tokens of its own.
_TAKEN = re.compile(r"<unk>|</?s>|<0x[0-9A-F]{2}>|" + re.escape(END))


def reserved_tokens(names: Sequence[str]) -> tuple[str, ...]:
    """Return the control tokens to reserve, in the order of their ids: those of groups first, whatever their order.

    Args:
        names: of groups, and tokens of the user's own, such as `<my_token>`.

    Raises:
        ConfigError: a name is neither.
    """
    own = [name for name in names if name.startswith("<")]
    groups = [name for name in names if not name.startswith("<")]
    for name in groups:
        if name not in GROUPS:
            message = f"there is no group {name!r} of control tokens"
            raise ConfigError(message, "--reserve", did_you_mean(name, [*GROUPS]))
    for token in own:
        # The split pattern ends words before `>`, so that no merge of a text makes a token with a letter in it.
        if not _TOKEN.fullmatch(token) or _TAKEN.fullmatch(token):
            message = f"{token!r} cannot be reserved" if _TOKEN.fullmatch(token) else f"{token!r} is no name of a token"
            fix = "write a name of letters, digits and _ | . : / - in <>, such as <my_token>, that no tokenizer uses"
            raise ConfigError(message, "--reserve", fix)
    tokens = [token for group, of_group in GROUPS.items() if group in groups for token in of_group]
    return tuple(dict.fromkeys([*tokens, *own]))
