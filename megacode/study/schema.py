"""The study file: arms, factors and seeds around one base config, and the comparisons declared in advance."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, PlainValidator, Tag

from megacode.config.quantity import Frozen, Length
from megacode.plan.decay_weights import Shape

THE_FACTOR = "*"  # in `set` of a level: the key that the factor is named by


def _read_part(value: Any) -> Fraction:
    """Read the share of a full run that a twin is: `1/16`, `6.25%` or `0.0625`."""
    try:
        # YAML's `true` would pass as the number 1.
        if isinstance(value, bool):
            raise ValueError
        text = str(value).strip()
        share = Fraction(text[:-1].strip()) / 100 if text.endswith("%") else Fraction(text)
        if not 0 < share < 1:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is not a part of a full run; write for example 1/16") from None
    return share


def _read_arm(value: Any) -> Any:
    """Read an arm that is only a list of phases."""
    return {"phases": value} if isinstance(value, list) else value


def _read_factor(value: Any) -> Any:
    """Give the values of a factor that is a list their names; the key is filled in where it is known."""
    if not isinstance(value, list):
        return value
    # `true` and `false` as in YAML, not as Python writes them.
    names = [str(item).lower() if isinstance(item, bool) else str(item) for item in value]
    if len(set(names)) < len(names):
        raise ValueError("a value stands twice; name each level once")
    return {name: {"set": {THE_FACTOR: item}} for name, item in zip(names, value, strict=True)}


def _read_points(value: Any) -> float:
    """Read a difference of scores: `0.5 points`."""
    # The unit is required: 0.5 of a score in 0..1 is not 0.5 points of one in per cent.
    number, _, unit = str(value).strip().rpartition(" ")
    try:
        if isinstance(value, bool) or unit not in ("point", "points") or not 0 <= float(number) < inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"{value!r} is not a difference; write for example 0.5 points") from None
    return float(number)


Points = Annotated[float, PlainValidator(_read_points)]


class PhaseUse(Frozen):
    """A named phase, ended early.

    Attributes:
        phase: its name.
        until: how far into its length it is left, as in a run's config.
    """

    phase: str
    until: Length | None = None


# With tags pydantic reports the mistakes of the form that was written, not those of both.
Use = Annotated[
    Annotated[str, Tag("as-name")] | Annotated[PhaseUse, Tag("as-use")],
    Discriminator(lambda value: "as-name" if isinstance(value, str) else "as-use"),
]


def _uses(written: tuple[str | PhaseUse, ...]) -> tuple[PhaseUse, ...]:
    return tuple(PhaseUse(phase=use) if isinstance(use, str) else use for use in written)


class ArmInit(Frozen):
    """Where an arm's first weights come from: another arm's end, or a checkpoint; optimizer and clock start from zero.

    Attributes:
        arm: another arm of the study, at the same scale and seed.
        from_: a run directory or a checkpoint (in YAML: `from`).
    """

    arm: str | None = None
    from_: str | None = Field(default=None, alias="from")


class Forecast(Frozen):
    """What a metric of an arm is expected to be, written before the arm is trained; it is no part of its identity.

    Attributes:
        value: expected, the mean over seeds.
        low, high: of the interval that should hold it.
        at: levels that it is for; absent: all that the arm is trained at.
    """

    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    at: tuple[str, ...] = ()


class Merge(Frozen):
    """Checkpoints of a trunk, merged so that their mean stands for a decay to zero; see `plan.decay_weights`.

    Attributes:
        decay: its shape.
        over: its length, up to the end of the arm's training.
        last: merge so many checkpoints instead: the decay begins at the first of them.
    """

    decay: Shape
    over: Length | None = None
    last: int | None = Field(default=None, ge=2)


class Anneal(Frozen):
    """What stands in for a trained decay at an arm's end.

    Attributes:
        merge: checkpoints that are merged.
    """

    merge: Merge


class StudyArm(Frozen):
    """A way to train.

    Attributes:
        phases: names of phases, in order; a phase may be used twice.
        set: settings of this arm, `key.path: value`.
        init: first weights other than random ones.
        anneal: how the arm ends, if not with its last phase.
        table: the table of results that it belongs to.
        paper: the arm of the paper whose numbers stand beside its own; absent: that of its own name.
        same_as: another arm that this is a second name for.
        forecast: by metric, `TASK/METRIC` or `mean/NAME`.
    """

    phases: tuple[Use, ...] | None = Field(default=None, min_length=1)
    set: dict[str, Any] = {}
    init: ArmInit | None = None
    anneal: Anneal | None = None
    table: str = ""
    paper: str | None = None
    same_as: str | None = None
    forecast: dict[str, Forecast] = {}

    @property
    def named_phases(self) -> tuple[PhaseUse, ...]:
        """The phases that it uses, in order."""
        return _uses(self.phases or ())


class Level(Frozen):
    """One level of a factor.

    Attributes:
        set: settings of this level, `key.path: value`; they win over those of the arm.
        only: the arms that it is crossed with; absent: all.
        twin: train this part of the full run, with sources cut alike, so that each is repeated as often.
        of: with `twin`: the level that is the full run; absent: the arm without this level.
        then: phases that every arm is continued with at this level, after its own; such as the same fine-tuning.
    """

    set: dict[str, Any] = {}
    only: tuple[str, ...] | None = None
    twin: Annotated[Fraction, PlainValidator(_read_part)] | None = None
    of: str | None = None
    then: tuple[Use, ...] = ()

    @property
    def further_phases(self) -> tuple[PhaseUse, ...]:
        """The phases of `then`."""
        return _uses(self.then)


class Match(Frozen):
    """What some arms claim to have in common; `plan` proves it.

    Attributes:
        arms: two or more.
        exposure: `samples`: each has learned from equally many samples of every source, in the same windows; those of
            arms that `init` names count.
        end: a phase that all of them end with: equal in samples by source, in data sets and in learning rate.
    """

    arms: tuple[str, ...] = Field(min_length=2)
    exposure: Literal["samples"] | None = None
    end: str | None = None


class Compare(Frozen):
    """The comparisons, declared before any result is seen.

    Attributes:
        primary: metrics whose intervals hold together, over all arms.
        secondary: further metrics, corrected separately.
        margin: `0.5 points`: smaller differences count as equal.
        seed_sd: standard deviation over seeds, where it is known from elsewhere, in points.
        pairs: pairs `[arm, baseline]` beside those with the study's baseline.
    """

    primary: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()
    margin: Points | None = None
    seed_sd: float | None = Field(default=None, gt=0)
    pairs: tuple[tuple[str, str], ...] = ()


class Study(Frozen):
    """A question as a file.

    Attributes:
        name: of the study; absent: that of its file.
        base: a run's config that all arms share, relative to the study file; each arm's own keys win.
        set: settings of all arms, `key.path: value`, over those of the base.
        sources: data sets beside those of the base; an arm's config has those of them that its phases draw from.
        phases: by name, as in a run's config, without `name`.
        arms: by name.
        factors: by name: levels by name; or a config key and the list of its values.
        seeds: each arm is trained once with each.
        vary: what seeds vary: the order of data and the first weights, or one of them, with the other as the first
            seed has it.
        baseline: the arm that others are compared with.
        compare: what is declared in advance.
        match: what arms claim to have in common.
        suites: what scores them.
        runs: directory of the runs, relative to the working directory.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")
    base: str | None = None
    set: dict[str, Any] = {}
    sources: dict[str, dict[str, Any]] = {}
    phases: dict[str, dict[str, Any]] = Field(min_length=1)
    arms: dict[str, Annotated[StudyArm, BeforeValidator(_read_arm)]] = Field(min_length=1)
    factors: dict[str, Annotated[dict[str, Level], BeforeValidator(_read_factor)]] = {}
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1234,), min_length=1)
    vary: Literal["both", "data", "weights"] = "both"
    baseline: str
    compare: Compare = Compare()
    match: tuple[Match, ...] = ()
    suites: tuple[str, ...] = ()
    runs: str | None = None

    @property
    def directory(self) -> str:
        """The directory of the runs."""
        return self.runs or f"runs/{self.name}"

    def original(self, arm: str) -> str:
        """Return the arm whose training an arm is: itself, or what it is a second name for."""
        return self.arms[arm].same_as or arm

    def uses(self, arm: str, levels: Mapping[str, str] | None = None) -> tuple[PhaseUse, ...]:
        """Return the phases of an arm, at some levels by factor with those that these add."""
        own = self.arms[self.original(arm)].named_phases
        further = (self.factors[factor][level].further_phases for factor, level in (levels or {}).items())
        return (*own, *(use for uses in further for use in uses))
