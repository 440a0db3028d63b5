"""Find in a rendered conversation what the model has to write: its answers, and the token that ends each.

A template may mark answers by `{% generation %}`, and then says it itself. For all others it is derived: an answer
begins where the conversation before it ends when an answer is asked for, which is the prompt that the model will see.
It ends with the first special token behind its content, or where the template ends it. Where the rendered beginning of
a conversation is not the beginning of the rendered conversation, nothing is known, and the template is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megacode.chat.conversations import Message
from megacode.chat.special_names import QUOTED, WRITTEN, SpecialNames
from megacode.chat.templates import ChatTemplate

MARK_THEM = "give --chat-template FILE with a template that marks answers by {% generation %} and {% endgeneration %}"


class UnmarkedError(Exception):
    """A template does not show where answers begin and end; the message says what was found."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it.

    Attributes:
        text: special tokens are one character each, see `SpecialNames.short`.
        answers: first and last character (exclusive) of each answer, ascending.
        ended: whether something that the model learns to write ends every answer.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    ended: bool


def render(template: ChatTemplate, names: SpecialNames, messages: Sequence[Message]) -> Rendered:
    """Return a conversation as text with its answers.

    Raises:
        ValueError: the template refuses the conversation, or a message cannot be told from special tokens.
        UnmarkedError: the template does not show where answers begin and end.
    """
    quoted = [names.quoted(message) for message in messages]
    rendered = (_marked if template.marks_answers else _derived)(template, names, quoted)
    if not QUOTED.search(rendered.text):
        return rendered
    # Spelled out, a token takes more characters: what lies behind it moves.
    places = [tuple(len(names.spelled(rendered.text[:place])) for place in span) for span in rendered.answers]
    return Rendered(names.spelled(rendered.text), tuple((first, end) for first, end in places), rendered.ended)


def render_whole(template: ChatTemplate, names: SpecialNames, messages: Sequence[Message]) -> Rendered:
    """Return a conversation as text, without looking for answers.

    Raises:
        ValueError: see `render`.
    """
    text = names.short(template.render([names.quoted(message) for message in messages]))
    return Rendered(names.spelled(text), (), True)


def _marked(template: ChatTemplate, names: SpecialNames, messages: Sequence[Message]) -> Rendered:
    raw, marks = template.render_marked(messages)
    text = names.short(raw)
    # Marks are places in the long text: what precedes them is shortened to find theirs in the short one.
    # A mark around nothing has no token to learn.
    spans = [(len(names.short(raw[:first])), len(names.short(raw[:end]))) for first, end in marks if first < end]
    spans = [(first, _with_end(text, first, end)) for first, end in spans]
    wanted = [message["content"].strip() for message in messages if message["role"] == "assistant"]
    # Marks inside a macro lie in another place than transformers tells: their text shows it.
    held = "\0".join(text[first:end] for first, end in spans)
    at = 0
    for content in wanted:
        at = held.find(content, at)
        if at < 0:
            raise UnmarkedError(f"its marks leave out the answer {content[:40]!r}")
        at += len(content)
    # A mark that ends with the answer's own words holds nothing that the model could learn to stop at.
    ended = all(not wanted or not text[first:end].rstrip().endswith(tuple(wanted)) for first, end in spans)
    return Rendered(text, tuple(spans), ended)


def _with_end(text: str, first: int, end: int) -> int:
    """Return the end of an answer with the special token right behind it, which many marks leave out."""
    has_end = end > first and WRITTEN.match(text[end - 1])
    return end + 1 if not has_end and WRITTEN.match(text[end : end + 1]) else end


def _derived(template: ChatTemplate, names: SpecialNames, messages: Sequence[Message]) -> Rendered:
    text = names.short(template.render(messages))
    spans, ended = [], True
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # Up to two more renderings for each answer: the work grows with the square of the number of turns.
        prompt = names.short(template.render(messages[:number], ask=True))
        if not text.startswith(prompt):
            asked = f"with the beginning of an answer it writes {_tail(prompt, text, names)!r}"
            raise UnmarkedError(f"{asked} before message {number + 1}, and something else in the whole conversation")
        until = len(text)
        if number + 1 < len(messages):
            # What follows the last message alone (an end of text) is no part of an earlier one.
            until = _shared(text, names.short(template.render(messages[: number + 1])))
        content = message["content"].strip()
        # Stripped above, as many templates strip it. What they write before it, such as an empty thought, is
        # a part of the answer: the model has to write that, too.
        at = text.find(content, len(prompt), until)
        if at < 0:
            raise UnmarkedError(f"it does not write message {number + 1}, {content[:40]!r}, as it is behind its prompt")
        behind = at + len(content)
        end = WRITTEN.search(text, behind, until)
        spans.append((len(prompt), end.end() if end else until))
        ended = ended and bool(text[behind : spans[-1][1]].strip())
    return Rendered(text, tuple(spans), ended)


def _shared(text: str, other: str) -> int:
    """Return how many characters two texts share at their beginning."""
    # By halves: a comparison of two slices is far faster than a loop over characters.
    low, high = 0, min(len(text), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if text.startswith(other[:middle]):
            low = middle
        else:
            high = middle - 1
    return low


def _tail(prompt: str, text: str, names: SpecialNames) -> str:
    """Return the part of a prompt that differs from a text, with a little before it, as it was rendered."""
    same = _shared(prompt, text)
    return names.full(prompt[max(0, same - 20) : same + 20])


def end_of_turn(template: ChatTemplate, specials: Sequence[str]) -> str | None:
    """Return the special token that ends an answer; None: no special token does, or the template shows none.

    Raises:
        ConfigError: the template is not valid.
    """
    names = SpecialNames(specials)
    example = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good morning"}]
    # Some templates want a system message, and some refuse one.
    for messages in (example, [{"role": "system", "content": "Be brief."}, *example]):
        try:
            rendered = render(template, names, messages)
        except (ValueError, UnmarkedError):
            continue
        last = rendered.text[rendered.answers[-1][1] - 1] if rendered.answers else ""
        return names.full(last) if WRITTEN.match(last) else None
    return None
