"""Loads the two data sets that the hub does not hand out as they are: QuAC and the Story Cloze Test."""

import re
import string
from collections import Counter
from typing import Any

import datasets

from megacode.eval.manual_datasets import read_quac, read_storycloze


def quac(**_: object) -> dict[str, datasets.Dataset]:
    """Return QuAC's validation questions as `{id, prompt, answers, dialogue}`."""
    return {"validation": datasets.Dataset.from_list(read_quac())}


def storycloze(**_: object) -> dict[str, datasets.Dataset]:
    """Return the stories as `{id, context, endings, answer}`."""
    return {"test": datasets.Dataset.from_list(read_storycloze())}


def quac_scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return word F1 and exact match with the reference answer that fits best."""
    answer = _words(results[0])
    references = [_words(reference) for reference in doc["answers"]]
    return {
        "f1": max(_f1(answer, reference) for reference in references),
        "exact_match": float(any(answer == reference for reference in references)),
    }


def _words(text: str) -> list[str]:
    """Return the words without case, punctuation and articles, as SQuAD's and QuAC's own scorers take them."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _f1(answer: list[str], reference: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference)) if shared else float(answer == reference)
