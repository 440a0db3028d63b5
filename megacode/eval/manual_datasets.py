"""Data sets that `datasets` cannot load: where they are stored, how to fetch them, and how to read their items.

Both are in the cache directory that Hugging Face's libraries use (HF_HOME), below `megacode/`:

    megacode/quac/val_v0.2.json      its authors' file; `megacode evaluate --prefetch` downloads it
    megacode/story_cloze/*.csv       sent by its authors on request; copy it there by hand
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.base.files import atomic_path

QUAC_URL = "https://s3.amazonaws.com/my89public/quac/val_v0.2.json"
_STORYCLOZE_FORM = "https://cs.rochester.edu/nlp/rocstories"
_STORYCLOZE_FILE = "cloze_test_test__spring2016*.csv"
_NO_ANSWER = "CANNOTANSWER"
_TIMEOUT_SECONDS = 60.0


def cache_dir() -> Path:
    """Return the cache directory of Hugging Face's libraries."""
    # The order in which Hugging Face's own libraries look.
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("HF_HOME", f"{home}/huggingface")).expanduser()


def read_quac() -> list[dict[str, Any]]:
    """Return QuAC's validation questions in the file's order.

    Returns:
        `{id, prompt, answers, dialogue}`: the prompt is the section's title and text, the dialogue so far and the
        question; `answers` are the distinct reference answers, at least one.

    Raises:
        DataError: if the file is missing or invalid.
    """
    path = _quac_file()
    if not path.exists():
        fix = f"`megacode evaluate --prefetch` downloads it; or copy {QUAC_URL} there by hand"
        raise DataError("QuAC's validation file is missing", str(path), fix)
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        return [item for article in articles for section in article["paragraphs"] for item in _quac(article, section)]
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "remove it and fetch it again with `megacode evaluate --prefetch`"
        raise DataError(f"this is not QuAC's file ({type(error).__name__}: {error})", str(path), fix) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"it cannot be read: {error.strerror or error}", str(path), "check its permissions, and its disk")


def _quac(article: dict[str, Any], section: dict[str, Any]) -> list[dict[str, Any]]:
    # The marker is the data set's own device and no part of the text.
    text = section["context"].removesuffix(_NO_ANSWER).strip()
    prompt = f"{article['title']} - {article['section_title']}\n\n{text}\n"
    items = []
    for question in section["qas"]:
        prompt += f"\nQ: {question['question']}\nA:"
        # Annotators often agree; equal answers count once.
        answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
        item = {"id": question["id"], "prompt": prompt, "answers": [_shown_answer(answer) for answer in answers]}
        items.append({**item, "dialogue": question["id"].partition("_q#")[0]})
        # The dialogue continues with the answer that was given then, not with the model's.
        prompt += f" {_shown_answer(question['orig_answer']['text'])}"
    return items


def _shown_answer(answer: str) -> str:
    return "I don't know." if answer == _NO_ANSWER else answer


def read_storycloze() -> list[dict[str, Any]]:
    """Return the stories of the Story Cloze Test of spring 2016.

    Returns:
        `{id, context, endings[2], answer}`, answer 0 or 1.

    Raises:
        DataError: if the file is missing or invalid.
    """
    place = cache_dir() / "megacode" / "story_cloze"
    files = sorted(place.glob(_STORYCLOZE_FILE))
    if not files:
        message = "the Story Cloze Test's file is missing; its authors send it on request only"
        fix = f"request it at {_STORYCLOZE_FORM}, copy {_STORYCLOZE_FILE} there; or use --without storycloze"
        raise DataError(message, str(place), fix)
    try:
        # utf-8-sig: spreadsheet programs add a byte-order mark.
        with files[0].open(encoding="utf-8-sig", newline="") as file:
            return [_story(row) for row in csv.DictReader(file)]
    except OSError as error:
        raise _unreadable(files[0], error) from None
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        fix = "copy the file again, as its authors sent it"
        raise DataError(
            f"this is not the expected file ({type(error).__name__}: {error})", str(files[0]), fix
        ) from None


def _story(row: dict[str, str]) -> dict[str, Any]:
    # The file counts endings from 1.
    answer = int(row["AnswerRightEnding"]) - 1
    if answer not in (0, 1):
        raise ValueError(f"AnswerRightEnding {answer + 1}")
    return {
        "id": row["InputStoryid"],
        "context": " ".join(row[f"InputSentence{number}"] for number in range(1, 5)),
        "endings": [row[f"RandomFifthSentenceQuiz{number}"] for number in (1, 2)],
        "answer": answer,
    }


def fetch_quac() -> None:
    """Download QuAC's validation file, if it is missing.

    Raises:
        OSError: without network.
    """
    path = _quac_file()
    if path.exists():
        return
    with (
        urllib.request.urlopen(QUAC_URL, timeout=_TIMEOUT_SECONDS) as answer,
        # A download that broke off must not pass for the file.
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
    ):
        shutil.copyfileobj(answer, file)


def _quac_file() -> Path:
    return cache_dir() / "megacode" / "quac" / "val_v0.2.json"
