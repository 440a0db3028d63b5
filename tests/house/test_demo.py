"""The demo's own rules; its whole length is run by `make demo`, its parts by test_whole_path.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megacode.base.errors import ConfigError
from megacode.config.config_file import load_config
from megacode.demo import _DATA_STEPS, ITERATIONS, LAYOUTS, _Demo, demo_config, expected_time, run_demo


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_demo_config_is_a_valid_config_in_every_layout(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(demo_config(tmp_path, layout)))
    config = load_config(path)
    assert [phase.name for phase in config.phases] == list(ITERATIONS)
    assert config.checkpoint.at_start


def test_the_demo_says_beforehand_how_long_it_takes_on_a_free_and_on_a_busy_machine() -> None:
    assert expected_time(8, 0.0, "AVX-512").endswith("This machine has 8 cores and a load of 0.0: expect about 4.")
    assert expected_time(2, 6.0, "AVX-512").endswith("2 cores and a load of 6.0: expect about 17.")
    assert expected_time(1, 0.0, "AVX2") == (
        "On two free cores with AVX2 the demo takes about 6 minutes. "
        "This machine has 1 core and a load of 0.0: expect about 12."
    )


def test_an_unknown_layout_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean pp2"):
        run_demo(tmp_path, "pp")
    assert not list(tmp_path.iterdir())


def test_another_layout_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(demo_config(tmp_path, "dp2")))
    with pytest.raises(ConfigError, match="add --out runs/demo-tp2"):
        _Demo(tmp_path, "tp2").plan()


def test_scores_are_taken_before_training_and_after_each_phase(tmp_path: Path) -> None:
    milestones = _Demo(tmp_path, "dp2").milestones()
    assert milestones[0] == 0
    assert len(milestones) == len(ITERATIONS) + 1
    assert milestones[-1] == sum(ITERATIONS.values())


def test_data_only_ends_with_the_data_sets_that_the_small_study_reads(tmp_path: Path) -> None:
    titles = [title for title, _ in _Demo(tmp_path, "dp2").steps()[:_DATA_STEPS]]
    assert titles[-1] == "3. Preprocess into indexed data sets"
    study = yaml.safe_load((Path(__file__).parents[2] / "examples/studies/to_code_mini.yaml").read_text())
    made = demo_config(Path("runs/demo"), "dp2")
    assert study["set"]["tokenizer"] == made["tokenizer"]
    paths = {name: source["path"] for name, source in study["set"]["sources"].items()}
    assert paths == {name: source["path"] for name, source in made["sources"].items()}
