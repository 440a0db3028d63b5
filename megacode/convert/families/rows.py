"""The rows of a family's table: what a key of config.json means in megacode's model config, both ways.

A row explains some keys and knows some fields. `read` turns the document that transformers parsed into fields; `write`
turns a model into keys. `read` after `write` is the identity on every model that the family computes exactly, and that
is how a model's family is found: no row says a second time which models it can express.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from megacode.config.model import ModelConfig

Document = Mapping[str, Any]
ANOTHER = "choose a model without it"


class Refused(Exception):  # noqa: N818 - not an error of the program: a row's answer
    """A setting that megacode does not compute.

    Args:
        key: of config.json.
        what: what is wrong.
        fix: what to do about it.
    """

    def __init__(self, key: str, message: str, fix: str = ANOTHER) -> None:
        super().__init__(message)
        self.key, self.what, self.fix = key, message, fix


class FamilyRow(Protocol):
    """A row of a family's table."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of config.json that it explains."""
        ...

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of megacode's model config that it decides."""
        ...

    def read(self, document: Document) -> dict[str, Any]:
        """Return fields of a document as transformers parses it.

        Raises:
            Refused: megacode does not compute this.
        """
        ...

    def write(self, model: ModelConfig) -> dict[str, Any]:
        """Return keys for a model, the nearest that the family has; `read` shows whether they mean the model."""
        ...


@dataclass(frozen=True)
class _KeyOfField:
    """A key of config.json and the field of the model that it stands for."""

    key: str
    field: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)


@dataclass(frozen=True)
class Same(_KeyOfField):
    """A key that holds a field's value under another name; `default` where config.json may lack it."""

    default: Any = None

    def read(self, document: Document) -> dict[str, Any]:
        value = document.get(self.key, self.default)
        # None too counts as absent: transformers fills it in where a class has no other default.
        return {self.field: self.default if value is None else value}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {self.key: getattr(model, self.field)}


@dataclass(frozen=True)
class Switch(_KeyOfField):
    """A key that is true or false, and the field's value for each."""

    on: Any
    off: Any

    def read(self, document: Document) -> dict[str, Any]:
        return {self.field: self.on if document.get(self.key) else self.off}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {self.key: getattr(model, self.field) == self.on}


@dataclass(frozen=True)
class Always:
    """A field that has one value in the whole family."""

    field: str
    value: Any
    keys: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def read(self, document: Document) -> dict[str, Any]:
        return {self.field: self.value}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        # The class has this value built in: there is no key to write.
        return {}


@dataclass(frozen=True)
class Only:
    """A key with one value that megacode computes; other values are refused. Absent, it counts as that value."""

    key: str
    value: Any
    written: bool = True
    fields: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, document: Document) -> dict[str, Any]:
        value = document.get(self.key, self.value)
        if value != self.value:
            raise Refused(self.key, f"{self.key} is {value!r}, but megacode supports only {self.value!r}")
        return {}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {self.key: self.value} if self.written else {}


@dataclass(frozen=True)
class Inert:
    """Keys that do not change what the model computes.

    Attributes:
        keys: of config.json.
        reason: why they do not matter.
    """

    keys: tuple[str, ...]
    reason: str
    fields: tuple[str, ...] = ()

    def read(self, document: Document) -> dict[str, Any]:
        return {}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Groups:
    """Key and value heads; absent: one for each query head."""

    keys: tuple[str, ...] = ("num_key_value_heads",)
    fields: tuple[str, ...] = ("num_query_groups",)

    def read(self, document: Document) -> dict[str, Any]:
        return {"num_query_groups": document.get("num_key_value_heads") or document["num_attention_heads"]}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        return {"num_key_value_heads": model.query_groups}


@dataclass(frozen=True)
class HeadSize:
    """The width of a head; usually `hidden_size / num_attention_heads`.

    Attributes:
        kind: `free`: the class takes any; `filled`: it ignores the key, and heads fill hidden_size; `written`: the
            class has a default of its own, so the key is always written; `even`: any, but the class requires that the
            heads divide hidden_size.
    """

    kind: str = "free"
    keys: tuple[str, ...] = ("hidden_size", "head_dim")
    fields: tuple[str, ...] = field(default=("hidden_size", "kv_channels"))

    def read(self, document: Document) -> dict[str, Any]:
        heads, hidden, head_dim = document["num_attention_heads"], document["hidden_size"], document.get("head_dim")
        even, rest = divmod(hidden, heads)
        if rest and (self.kind in ("filled", "even") or not head_dim):
            message = f"hidden_size {hidden} is not divisible by {heads} heads"
            raise Refused("hidden_size", message, f"set hidden_size: {even * heads}")
        if self.kind == "filled" and head_dim not in (None, even):
            message = f"head_dim is {head_dim}, but this class ignores it: its heads have hidden_size / heads = {even}"
            raise Refused("head_dim", message, "remove head_dim")
        head = head_dim or even
        # None where it can be derived: equal models then have equal configs.
        return {"hidden_size": hidden, "kv_channels": None if head * heads == hidden else head}

    def write(self, model: ModelConfig) -> dict[str, Any]:
        derived = model.head_size * model.num_attention_heads == model.hidden_size
        written = self.kind == "written" or not derived
        return {"hidden_size": model.hidden_size} | ({"head_dim": model.head_size} if written else {})
