"""Score with vLLM through lm-eval's own class: faster answers on a GPU, and other last digits than transformers.

vLLM's kernels, batches and rounding are its own, so its scores say which backend made them, and comparisons refuse to
mix the two.
"""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megacode.base.errors import CheckpointError, ConfigError
from megacode.base.imports import uncollected
from megacode.eval.scores import beginning_of_texts
from megacode.eval.truncation import counting_cuts


def check_vllm(device: str | None) -> None:
    """Check that vLLM can score here, before anything is loaded.

    Args:
        device: the device that the user named, if any.

    Raises:
        ConfigError: vLLM is not installed, or was given a device.
    """
    where = "--backend vllm"
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed here", where, "pip install 'megacode[vllm]', on a machine with a GPU")
    if device is not None:
        fix = "remove --device; CUDA_VISIBLE_DEVICES says which GPU vLLM takes"
        raise ConfigError("vLLM chooses its device itself", where, fix)


def load_vllm(hf_dir: Path, batch_size: int) -> Any:
    """Return lm-eval's wrapper of a model in vLLM, in its saved dtype.

    Raises:
        CheckpointError: vLLM cannot load it.
    """
    with uncollected():
        from transformers import AutoTokenizer

        try:
            model = counting_cuts("vllm")
        except ImportError as error:  # lm-eval's class names parts of vLLM that move between versions
            fix = "install a version of vLLM that this lm-eval supports, or score with --backend hf"
            raise ConfigError(f"lm-eval cannot use the installed vLLM: {error}", "--backend vllm", fix) from error
    tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    try:
        return model(pretrained=str(hf_dir), batch_size=batch_size, **beginning_of_texts(hf_dir, tokenizer))
    except Exception as error:  # an architecture it lacks, memory, its own kernels
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"vLLM cannot load it: {reason}", str(hf_dir), "score it with --backend hf") from error


def saved_size(hf_dir: Path) -> tuple[int, str]:
    """Return the number of parameters in a model's files, and their dtype as torch prints it."""
    from megacode.convert.safetensors_files import SafetensorsFiles

    config = json.loads((hf_dir / "config.json").read_text(encoding="utf-8"))
    files = SafetensorsFiles(hf_dir, tied=bool(config.get("tie_word_embeddings")))
    # Headers alone are read: the weights are in another process's memory already.
    return sum(math.prod(files.shape(name)) for name in files), f"torch.{config.get('dtype', 'float32')}"
