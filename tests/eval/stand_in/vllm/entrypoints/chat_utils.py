from __future__ import annotations

from typing import Any


def resolve_hf_chat_template(**settings: Any) -> None:
    return None
