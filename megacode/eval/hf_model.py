"""Open an exported model with transformers to generate text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError
from megacode.base.imports import uncollected


def open_model(hf_dir: Path, device: str | None) -> tuple[Any, Any]:
    """Return a model and its tokenizer: fp32 on CPU, its saved dtype on a GPU.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    import torch

    with uncollected():
        from transformers import AutoModelForCausalLM, AutoTokenizer

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # On CPUs bf16 is slow, and less exact for no gain.
        dtype = "float32" if place == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    except Exception as error:  # its parsers raise errors of any kind for a corrupted directory
        reason = " ".join(str(error).split())[:300]
        fix = "export it again with `megacode convert to-hf`"
        raise CheckpointError(f"transformers cannot load it: {reason}", str(hf_dir), fix) from error
    return model.to(place).eval(), tokenizer


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end a text."""
    end = model.generation_config.eos_token_id
    # Models without a generation config fall back to their tokenizer's token.
    end = tokenizer.eos_token_id if end is None else end
    return [] if end is None else [end] if isinstance(end, int) else list(end)
