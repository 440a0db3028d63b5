from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer


def get_tokenizer(name: str, tokenizer_mode: str, trust_remote_code: bool, revision: Any, **settings: Any) -> Any:
    return AutoTokenizer.from_pretrained(name, **settings)
