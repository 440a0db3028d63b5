"""A tokenizer with the special tokens of well-known chat forms, and those forms written twice: as Jinja and by hand."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from megacode.config.model import TokenizerConfig
from megacode.data.train_tokenizer import train_tokenizer

SPECIALS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<s>",
    "</s>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<pad>",
)
Turns = Sequence[dict[str, str]]
Parts = list[tuple[str, bool]]

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' \
}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3 = """{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message.role + \
'<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
MISTRAL = """{{ '<s>' }}{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}{% else %}\
{{ ' ' + message.content + '</s>' }}{% endif %}{% endfor %}"""
GEMMA = """{{ '<bos>' }}{% for message in messages %}\
{% set role = 'model' if message.role == 'assistant' else message.role %}\
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
# Marks leave out the end of a turn, as in many published templates.
MARKED = """{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}\
{% if message.role == 'assistant' %}\
{% generation %}{{ message.content }}{% endgeneration %}{% else %}{{ message.content }}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def chatml(turns: Turns) -> Parts:
    parts: Parts = []
    for turn in turns:
        answers = turn["role"] == "assistant"
        parts += [(f"<|im_start|>{turn['role']}\n", False), (turn["content"] + "<|im_end|>", answers), ("\n", False)]
    return parts


def llama3(turns: Turns) -> Parts:
    parts: Parts = [("<|begin_of_text|>", False)]
    for turn in turns:
        parts.append((f"<|start_header_id|>{turn['role']}<|end_header_id|>\n\n", False))
        parts.append((turn["content"].strip() + "<|eot_id|>", turn["role"] == "assistant"))
    return parts


def mistral(turns: Turns) -> Parts:
    parts: Parts = [("<s>", False)]
    for turn in turns:
        asked = turn["role"] == "user"
        parts.append((f"[INST] {turn['content']} [/INST]" if asked else f" {turn['content']}</s>", not asked))
    return parts


def gemma(turns: Turns) -> Parts:
    parts: Parts = [("<bos>", False)]
    for turn in turns:
        answers = turn["role"] == "assistant"
        parts.append((f"<start_of_turn>{'model' if answers else turn['role']}\n", False))
        parts += [(turn["content"].strip() + "<end_of_turn>", answers), ("\n", False)]
    return parts


FORMS: dict[str, tuple[str, Callable[[Turns], Parts], str]] = {
    "chatml": (CHATML, chatml, "<|im_end|>"),
    "llama3": (LLAMA3, llama3, "<|eot_id|>"),
    "mistral": (MISTRAL, mistral, "</s>"),
    "gemma": (GEMMA, gemma, "<end_of_turn>"),
    "marked": (MARKED, chatml, "<|im_end|>"),
}
"""By name: the template; the same by hand, in parts that count or do not; and what ends a turn."""


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with `SPECIALS` and no chat template."""
    out = tmp_path_factory.mktemp("tokenizers")
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [file.read_text(encoding="utf-8", errors="ignore")[:4000] for file in sorted(library.glob("*.py"))[:60]]
    (out / "code.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    train_tokenizer("huggingface", [str(out / "code.jsonl")], 800, out / "chat")
    path = out / "chat" / "tokenizer.json"
    made = Tokenizer.from_file(str(path))
    made.add_special_tokens(list(SPECIALS))
    made.save(str(path))
    settings = out / "chat" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": "<pad>"}))
    return out / "chat"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> TokenizerConfig:
    """Its config."""
    return TokenizerConfig(kind="huggingface", path=str(tokenizer_dir))
