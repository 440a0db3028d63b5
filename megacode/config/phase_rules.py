"""Rules of a single phase: its length, its blend and its learning rate; see `rules`.

Each rule checks one phase at a time, so a mistake in one phase hides none in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import fsum, isclose
from typing import TYPE_CHECKING

from megacode.base.errors import Problem
from megacode.config.placeholders import UNKNOWN
from megacode.config.suggestions import did_you_mean

if TYPE_CHECKING:
    from megacode.config.data import Phase
    from megacode.config.run import RunConfig

_PERCENTAGE = 10  # a weight this large beside one below 1 is most likely a percentage

PhaseRule = Callable[["RunConfig", int, "Phase"], Iterator[Problem]]


def a_phase_has_a_name_of_its_own(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """Phases of the same name could not be distinguished in logs and plans."""
    # Only earlier phases, so that one duplicate gives one problem.
    if any(other.name is not UNKNOWN and other.name == phase.name for other in config.phases[:number]):
        yield Problem(
            f"another phase is already named {phase.name!r}", f"phases[{number}].name", "give it another name"
        )


def a_blend_names_known_sources(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """A blend names only sources that exist."""
    yield from _unknown_names(config, f"phases[{number}].blend", list(phase.blend))


def repeat_names_known_sources(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """`repeat` names only sources that exist."""
    if phase.repeat is not UNKNOWN and isinstance(phase.repeat, dict):
        yield from _unknown_names(config, f"phases[{number}].repeat", list(phase.repeat))


def _unknown_names(config: RunConfig, where: str, names: list[str]) -> Iterator[Problem]:
    known = list(config.sources)
    for name in names:
        if name not in known:
            yield Problem(f"{name!r} is not one of the sources", f"{where}.{name}", did_you_mean(name, known))


def a_phase_has_one_length(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """A length is given once, in one unit."""
    lengths = (("tokens", phase.tokens), ("samples", phase.samples), ("iterations", phase.iterations))
    units_set = [unit for unit, count in lengths if count is not None]
    if len(units_set) != 1:
        units = " and ".join(units_set) or "none of tokens, samples, iterations"
        message = f"phase {phase.name!r} needs exactly one length, and gives {units}"
        yield Problem(message, f"phases[{number}]", "give exactly one, such as tokens: 200B")


def until_lies_inside_the_phase(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """`until` is at most the phase's length; where that depends on batch sizes, the plan checks it."""
    lengths = [count for count in (phase.tokens, phase.samples, phase.iterations) if count is not None]
    if phase.until is None or len(lengths) != 1:
        return
    # Tokens and samples convert exactly; iterations need the batch ramp, which the plan knows.
    per = {"samples": config.train.seq_length, "tokens": 1}
    until, length = phase.until, phase.length
    if until.unit == length.unit:
        most: int | None = length.count
    elif until.unit in per and length.unit in per:
        most = length.count * per[length.unit] // per[until.unit]
    else:
        most = None
    if most is not None and until.count > most:
        message = f"phase {phase.name!r} ends early after {until}, but is only {length} long"
        yield Problem(message, f"phases[{number}].until", f"give at most {most} {until.unit}, or lengthen the phase")


def a_blend_has_a_source(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """At least one weight is positive."""
    if not any(phase.blend.values()):
        message = f"every weight of phase {phase.name!r} is zero" if phase.blend else "the blend is empty"
        yield Problem(message, f"phases[{number}].blend", "give at least one source a positive weight")


def a_blend_is_written_one_way(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """Weights are all shares or all percentages; `0.5` beside `40`, or `0.95` beside `5`, is a mistake.

    Relative weights such as `0.5` beside `2` are normalised, and the plan says so.
    """
    shares = [name for name, weight in phase.blend.items() if 0 < weight < 1]
    larger = [name for name, weight in phase.blend.items() if weight >= 1]
    # `0.95` beside `5`: read as 95 % and 5 % they sum to 1, so that is what was meant.
    total = fsum(weight / 100 if weight >= 1 else weight for weight in phase.blend.values())
    percentages = any(weight >= _PERCENTAGE for weight in phase.blend.values()) or isclose(total, 1)
    # `sums_to` says what the weights mean, so then there is nothing to guess.
    if shares and larger and percentages and phase.sums_to is None:
        small, large = shares[0], larger[0]
        message = f"the blend mixes shares and percentages: {small} {phase.blend[small]:g} beside {large} "
        message += f"{phase.blend[large]:g}, {phase.total_weight:.6g} in total"
        yield Problem(message, f"phases[{number}].blend", "write shares that sum to 1, or percentages that sum to 100")


def rates_fit_their_schedule(config: RunConfig, number: int, phase: Phase) -> Iterator[Problem]:
    """Each schedule has the settings that it needs, and no others."""
    rate, where = phase.learning_rate, f"phases[{number}].learning_rate"
    # Later phases start at the rate where the previous one ended.
    if number == 0 and rate.peak is None:
        yield Problem("the first phase has no peak to start from", f"{where}.peak", "add peak: 3.0e-4")
    if isinstance(rate.decay, float) and not 0 < rate.decay <= 1:
        yield Problem(f"{rate.decay:g} is not a share of the phase", f"{where}.decay", "give more than 0%, up to 100%")
    # Only `wsd` has a decay of its own; all others fall over the rest of the phase.
    if (rate.decay is not None) != (rate.schedule == "wsd"):
        fix = "add decay: 10%" if rate.decay is None else "remove decay, or use schedule: wsd"
        yield Problem(
            (
                f"schedule {rate.schedule} needs decay"
                if rate.decay is None
                else f"schedule {rate.schedule} takes no decay"
            ),
            f"{where}.decay",
            fix,
        )
    if rate.schedule == "constant" and rate.final is not None:
        fix = "remove final, or use schedule: linear"
        yield Problem("schedule constant takes no final", f"{where}.final", fix)
    if rate.schedule in ("cosine", "linear", "wsd") and rate.final is None:
        yield Problem(f"schedule {rate.schedule} needs final", f"{where}.final", "add final: 3.0e-5, or final: 0")
    # peak * sqrt(warmup / samples): the warmup is also the time scale of the fall, so there is no default for it.
    if rate.schedule == "inverse_sqrt" and rate.warmup is None:
        yield Problem("schedule inverse_sqrt needs warmup", f"{where}.warmup", "add warmup: 1000 iterations")
    # Without a peak of its own a phase starts at the previous phase's rate, which only the plan knows.
    if rate.peak is not None and rate.final is not None and rate.final > rate.peak:
        fix = f"give final at most {rate.peak:g}"
        yield Problem(f"final {rate.final:g} is larger than peak {rate.peak:g}", f"{where}.final", fix)


PHASE_RULES: tuple[PhaseRule, ...] = (
    a_phase_has_a_name_of_its_own,
    a_blend_names_known_sources,
    repeat_names_known_sources,
    a_phase_has_one_length,
    until_lies_inside_the_phase,
    a_blend_has_a_source,
    a_blend_is_written_one_way,
    rates_fit_their_schedule,
)
