from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from megacode.base.errors import ConfigError, LaunchError
from megacode.config import rules
from megacode.config.training import Fp8
from megacode.mcore import layout_check


def test_a_run_that_fits_has_no_problems(program: ModuleType) -> None:
    assert layout_check.layout_problems(program.run_config(parallel={"tensor": 2}), 4) == []


def test_processes_that_do_not_divide_into_copies_are_refused_with_the_nearest_numbers(program: ModuleType) -> None:
    config = program.run_config(parallel={"tensor": 2, "pipeline": 2})
    with pytest.raises(LaunchError) as caught:
        layout_check.check(config, 6)
    assert "6 processes are not divisible by tensor 2 x pipeline 2 x context 1 = 4" in str(caught.value)
    assert "start 4 or 8 processes" in str(caught.value)


def test_too_few_processes_are_told_how_many(program: ModuleType) -> None:
    with pytest.raises(LaunchError, match="start 4 processes"):
        layout_check.data_parallel_size(program.run_config(parallel={"tensor": 4, "pipeline": 1}).parallel, 1)


def test_a_batch_that_does_not_divide_over_ranks_is_refused_with_the_nearest_numbers(program: ModuleType) -> None:
    config = program.run_config(train={"global_batch_size": 10, "micro_batch_size": 2})
    with pytest.raises(ConfigError) as caught:
        layout_check.check(config, 2)
    said = "train.micro_batch_size: global_batch_size 10 is not divisible by 4 (micro_batch_size 2 x data parallel 2)"
    assert said in str(caught.value)
    assert "set micro_batch_size to 1 or 5, which does not change training; or make global_batch_size 8 or 12" in str(
        caught.value
    )
    with pytest.raises(ConfigError, match="use 1 or 5 processes, or more tensor or pipeline ranks; or make"):
        layout_check.check(config, 3)


def test_interleaved_pipelines_take_micro_batches_in_groups(program: ModuleType) -> None:
    config = program.run_config(parallel={"pipeline": 2, "virtual_pipeline": 2}, train={"global_batch_size": 6})
    with pytest.raises(
        ConfigError, match=r"\(micro_batch_size 2 x data parallel 1 x pipeline 2, required by virtual"
    ) as caught:
        layout_check.check(config, 2)
    assert caught.value.problems[0].fix.startswith("set micro_batch_size to 1 or 3, which does not change training")
    odd = program.run_config(parallel={"pipeline": 2, "virtual_pipeline": 2}, train={"global_batch_size": 5})
    with pytest.raises(ConfigError, match=r"global_batch_size 5 is not .*\n.*remove virtual_pipeline"):
        layout_check.check(odd, 2)


def test_a_ramp_is_judged_too(program: ModuleType) -> None:
    ramp = {"start": 2, "increment": 2, "samples": 100}
    problems = layout_check.layout_problems(program.run_config(train={"batch_ramp": ramp}), 2)
    assert [problem.where for problem in problems] == ["train.micro_batch_size"]
    assert problems[0].what.startswith("batch_ramp.start 2 and batch_ramp.increment 2 are not divisible by 4")
    assert problems[0].fix.startswith(
        "set micro_batch_size to 1, which does not change training; or make batch_ramp.start 4"
    )


def test_a_recipe_that_this_machine_does_not_compute_is_refused(program: ModuleType) -> None:
    config = program.run_config()
    precision = config.precision.model_copy(update={"fp8": Fp8(recipe="mxfp8")})
    with pytest.raises(ConfigError, match=r"use recipe tensorwise or delayed"):
        layout_check.check_model(config.model_copy(update={"precision": precision}))


def test_ranks_that_share_sequences_take_the_same_samples(program: ModuleType) -> None:
    config = program.run_config(parallel={"context": 2})
    assert layout_check.layout_problems(config, 4) == []
    assert layout_check.data_parallel_size(config.parallel, 4) == 2


@pytest.mark.parametrize(
    ("parallel", "legal"),
    [
        ({"context": 3}, "is not divisible by 6 (sequence and context parallel) use a smaller"),
        ({"context": 4, "tensor": 3, "sequence_parallel": True}, "is not divisible by 24"),
        ({"context": 8, "tensor": 4, "sequence_parallel": True}, ""),
        ({"context": 16}, ""),
        ({"context": 32}, "is not divisible by 64"),
    ],
)
def test_the_sequence_divides_into_chunks_and_their_slices(
    program: ModuleType, parallel: dict[str, Any], legal: str
) -> None:
    problems = list(rules.the_sequence_divides(program.run_config(parallel=parallel)))
    assert bool(problems) == bool(legal)
    assert legal in "".join(f"{problem.what} {problem.fix}" for problem in problems)
