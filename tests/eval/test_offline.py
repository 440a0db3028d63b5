"""What libraries warn of while lm-eval runs is logged once, not thrown away."""

from __future__ import annotations

import logging
import warnings

import pytest

from megacode.eval.offline import surroundings


def test_a_library_s_warning_is_told_once_when_the_work_is_done(caplog: pytest.LogCaptureFixture) -> None:
    library = logging.getLogger("lm_eval.models")
    caplog.set_level(logging.INFO, logger="megacode")
    with surroundings(offline=True, own_cache=False, verbose=False):
        for number in range(3):
            library.warning("context length %d exceeds", number)
        warnings.warn("cut to fit", UserWarning, stacklevel=1)
        library.error("gone wrong")
        assert [record.getMessage() for record in caplog.records] == ["lm_eval.models: gone wrong"]
    told = [record.getMessage() for record in caplog.records]
    assert told.count("library warning: lm_eval.models: context length 0 exceeds") == 1
    assert "library warning: cut to fit" in told
    assert len(told) == 3
    assert logging.getLogger("lm_eval").propagate
