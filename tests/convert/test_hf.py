"""Checkpoints of real Megatron-core become Hugging Face models that compute the same."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megacode.convert.hf import to_hf

LAYOUTS = ["llama", "cohere", "cohere-untied", "stablelm"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_export_computes_what_megacode_computes(name, runs, out) -> None:
    report = to_hf(runs(name), out)
    assert report.verified
    print(name, report.logits, max(p.relative for p in report.points), report.loss, report.exported_loss, report.greedy_agreement, report.texts)
