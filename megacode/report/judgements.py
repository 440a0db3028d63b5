"""Win-rates of the run's models, and text samples that they wrote."""

from __future__ import annotations

import re
from pathlib import Path

from megacode.base.files import Json
from megacode.report import figure as fig
from megacode.report.run_record import RunRecord
from megacode.report.scores import checkpoint_title
from megacode.report.series import value

MOST_SAMPLES = 6  # models whose texts are shown; all are in samples/
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def judgements(record: RunRecord) -> list[dict[str, str]]:
    """Return a row per comparison by `megacode judge` in the run: counts, and win rate with its 95 % interval."""
    # Files without overall figures are unfinished or of another kind.
    return [_row(judgement) for judgement in record.judgements if isinstance(judgement.get("overall"), dict)]


def _row(document: Json) -> dict[str, str]:
    overall = document["overall"]
    # Fewer than two valid prompts have no interval.
    low, high = overall.get("win_rate_95") or (None, None)
    interval = f"{100 * low:.1f} to {100 * high:.1f} %" if low is not None and high is not None else fig.NOTHING
    rate, agreement = value(overall, "win_rate"), value(overall, "agreement")
    return {
        "model": _name(document.get("a")),
        "against": _name(document.get("b")),
        "judge": str((document.get("judge") or {}).get("model") or ""),
        "prompts": f"{int(overall.get('prompts') or 0):,}",
        "outcome": " / ".join(str(overall.get(key, 0)) for key in ("wins", "ties", "losses")),
        "rate": fig.texts([rate], fig.percent)[0],
        "interval": interval,
        "agreement": fig.texts([agreement], fig.percent)[0],
    }


def _name(side: object) -> str:
    facts = side if isinstance(side, dict) else {}
    return str(facts.get("name") or Path(str(facts.get("path") or "unknown")).name)


def samples(record: RunRecord) -> list[Json]:
    """Return samples of the newest models, newest first: `title`, `settings`, `texts` of `prompt` and `text`."""
    documents = [document for document in record.samples if isinstance(document.get("samples"), list)]
    return [_samples(record, document) for document in reversed(documents[-MOST_SAMPLES:])]


def _samples(record: RunRecord, document: Json) -> Json:
    settings = document.get("settings") or {}
    settings_text = ", ".join(f"{str(key).replace('_', ' ')} {number}" for key, number in settings.items())
    texts = [
        # A text that was cut by the length limit is marked, or it would look like a model that breaks off.
        {"prompt": _shown(one.get("prompt")), "text": _shown(one.get("text")), "cut": one.get("ended") != "end of text"}
        for one in document["samples"]
        if isinstance(one, dict)
    ]
    title = checkpoint_title(record, int(document.get("iteration") or 0))
    return {"title": title, "settings": settings_text, "texts": texts}


def _shown(text: object) -> str:
    """Return a text without control characters, which are invalid in HTML."""
    return _CONTROL.sub("\u00b7", str(text or ""))
