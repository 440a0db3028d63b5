"""The shapes of a study's report: one JSON document, from which all pages and tables are made.

Scores are in the score's own unit: shares of 1 (a unit of `points` is shown in per cent), or bits per byte. `low` and
`high` are the ends of a 95 % interval unless `level` differs. None means not known or not meaningful, never 0.

Names: `arm` has its levels, such as `text-only@470m`; `metric` is `TASK/METRIC` or `mean/NAME`. A *place* is a
combination of levels, `470m`; arms are compared only inside a place. Lists keep the order of the study file.
"""

from __future__ import annotations

from typing import Any, TypedDict


class PhaseRow(TypedDict):
    """A phase of an arm."""

    name: str
    tokens: int
    blend: dict[str, float]  # shares that were realised, by source; they sum to 1


class ArmRow(TypedDict):
    """An arm at its levels, all seeds together."""

    name: str
    arm: str  # without levels
    levels: dict[str, str]
    place: str  # levels joined by "@"; "" without factors
    table: str
    same_as: str | None  # name of the arm that this is a second name for; it has no scores of its own
    is_baseline: bool
    phases: list[PhaseRow]
    tokens: int  # of one seed, from its first weights on
    flops: int
    seeds: list[int]
    scored_seeds: list[int]
    state: str  # "scored" | "partly scored" | "not scored" | "not trained"
    flags: list[str]  # sentences on what is odd about it; empty: nothing
    trunk: str | None  # arms with the same one share most of their training: their seeds spread less


class ModelRow(TypedDict):
    """The model at the end of an arm, of one seed: where every number of its arm comes from."""

    arm: str
    seed: int
    state: str  # "scored" | "partly scored" | "not scored" | "not trained"
    run: str | None  # run directory
    checkpoint: str | None
    iteration: int | None
    seal: str | None  # of the checkpoint
    scores: dict[str, str]  # score file by suite; its items lie beside it
    flags: list[str]


class MetricRow(TypedDict):
    """A quantity that is compared."""

    metric: str
    title: str  # for people: "HellaSwag, accuracy"; "reasoning (mean)"
    unit: str  # "points" | "bits per byte" | ""
    higher_is_better: bool | None
    family: str  # "primary" | "secondary" | "exploratory"
    items: int
    chance: float | None  # the score of guessing
    suite: str  # whose score files hold it
    tasks: list[str]  # of a mean: `TASK/METRIC` of its parts; of a task: itself
    missing: list[str]  # tasks that a mean lacks here
    reliability: Reliability | None
    signal_to_noise: float | None  # of this study: range of arms over the spread of seeds; None with one seed


class Reliability(TypedDict):
    """How well a task ranks corpora, as published."""

    decision_accuracy: dict[str, float]  # share of pairs that a model of this size ranks as a large one, by size
    signal_to_noise: float | None  # at 1B
    note: str  # a sentence: "a coin toss below 1B"
    source: str


class ScoreRow(TypedDict):
    """An arm's score in one metric."""

    arm: str
    metric: str
    value: float  # mean over seeds
    by_seed: dict[str, float]  # seeds as text, since JSON has no other keys
    errors_by_seed: dict[str, float | None]  # standard errors over items alone
    standard_error: float | None  # over items, and over seeds if there are several
    low: float | None
    high: float | None
    spread: float | None  # its own standard deviation over seeds
    seeds: int
    items: int
    places: int  # decimals to show, of points or of bits


class ComparisonRow(TypedDict):
    """A difference of two arms: the keys of `megacode compare --json` (docs/statistics.md), and where it comes from."""

    arm: str
    baseline: str
    metric: str
    difference: float
    low: float | None  # alone; None for an exact test
    high: float | None
    simultaneous_low: float | None  # corrected within the family
    simultaneous_high: float | None
    degrees_of_freedom: float | None
    seeds: int
    items: int
    distinguishable: bool
    relative: dict[str, float] | None  # value, low, high: 0.08 for 8 %
    score: float
    baseline_score: float
    unit: str
    higher_is_better: bool | None
    family: str  # "primary" (max-T) | "secondary" (Holm) | "exploratory" (Benjamini-Hochberg)
    method: str  # "t" | "exact"
    p: float
    adjusted_p: float
    standard_error: float | None
    about: str  # "models" | "recipes"
    paired_seeds: bool
    items_for: int
    items_against: int
    smallest_visible: float | None
    seeds_could_move_by: float | None
    seed_spread_from: (
        str  # whose spread over seeds counts: "all arms" | "arms of one trunk" | "arms of other trunks" | ""
    )
    within_margin: bool
    missing_tasks: list[str]
    words: str  # all this in a sentence
    place: str
    verdict: str  # "better" | "worse" | "higher" | "lower" | "equal" | "" (not distinguishable)
    declared_pair: bool  # from `compare.pairs`, not with the study's baseline
    models: list[str]  # keys of both sides in `provenance`: "ARM seed 1"


class PaperRow(TypedDict):
    """The paper's own numbers for one arm and metric, computed from its table; no seeds, no intervals."""

    arm: str
    paper_arm: str
    baseline: str
    metric: str
    score: float  # share of 1
    points: float  # difference in points of 100
    relative: float | None  # computed: 0.082 for 8.2 %
    stated: float | None  # as its text says it
    note: str


class Headline(TypedDict):
    """One sentence on one arm."""

    arm: str
    baseline: str
    metric: str
    verdict: str
    words: str


class CurvePoint(TypedDict):
    """An arm on a proportion curve; its scores are in `scores`."""

    arm: str
    share: float  # of all sources but the largest, in the trunk
    tokens: int


class ProportionCurve(TypedDict):
    """Arms that differ in one proportion alone."""

    name: str
    of: list[str]  # the sources that the share counts
    rest: str  # the source that is the rest
    points: list[CurvePoint]


class Pareto(TypedDict):
    """Two metrics against each other."""

    place: str
    x: str
    y: str
    arms: list[str]
    arrows: list[list[str]]  # [arm, the same arm with one more stretch]


class WaterfallStep(TypedDict):
    """The end of a phase of an arm, where it was scored."""

    phase: str
    node: str
    tokens: int  # read by then
    values: dict[str, float]  # mean over seeds, by metric
    by_seed: dict[str, dict[str, float]]  # by metric and seed
    files: dict[str, str]  # score file by "seed SUITE"


class Waterfall(TypedDict):
    """An arm, phase by phase."""

    arm: str
    steps: list[WaterfallStep]


class LossCurve(TypedDict):
    """Loss on held-out documents of a source, over the whole training of an arm."""

    arm: str
    seed: int
    source: str
    tokens: list[int]
    loss: list[float]  # nats per token
    borders: list[int]  # tokens at the ends of phases


class Forgetting(TypedDict):
    """How much worse a source is at a phase's end than the best before it; negative: it got better."""

    arm: str
    source: str
    phase: str
    value: float  # nats per token, mean over seeds
    by_seed: dict[str, float]


class Gain(TypedDict):
    """What an arm gains for what it costs alone: its own whole path, not its share of the tree."""

    arm: str
    metric: str
    flops: int
    difference: float | None  # from the baseline; None for the baseline itself
    score: float


class HeatCell(TypedDict):
    """A task and an arm; the interval is corrected by Benjamini-Hochberg over all tasks and arms of the place."""

    arm: str
    baseline: str
    metric: str
    difference: float
    adjusted_p: float
    distinguishable: bool
    verdict: str


class VarianceShare(TypedDict):
    """How much of the variance of a mean's differences over items is one task's."""

    place: str
    mean: str
    metric: str
    share: float


class HeatMap(TypedDict):
    """Arms x tasks."""

    metrics: list[str]
    cells: list[HeatCell]
    shares: list[VarianceShare]


class ExposureRow(TypedDict):
    """What an arm reads of a source."""

    arm: str
    source: str
    samples: int
    by_phase: dict[str, int]  # samples
    passes: float
    passes_by_phase: dict[str, float]
    rate_share: float  # its share of all tokens, weighted by the learning rate they are read at
    mean_age: int  # tokens that are read after a sample of it, on average


class OverlapRow(TypedDict):
    """Items of a task that occur verbatim in what an arm's models have read; the seed with most of them counts."""

    arm: str
    task: str
    hits: int
    items: int
    share_checked: float  # of the tokens read


class LaterFinding(TypedDict):
    """What others found since the paper."""

    fact: str
    numbers: str
    source: str


class DecisionAccuracy(TypedDict):
    """Whether two scales of this study rank its arms alike."""

    metric: str
    places: list[str]
    pairs: int
    agree: float  # share of pairs


class StudyReport(TypedDict):
    """The whole document."""

    study: dict[str, Any]  # name, file, runs, suites, primary, secondary, margin, seed_sd, pairs, factors, counts
    level: float
    baseline: str
    seeds: list[int]
    complete: bool
    missing: list[str]  # sentences: what is not there yet
    notes: list[str]  # sentences on the scores: other versions, unpaired seeds
    left_out: dict[str, str]  # tasks that are not compared, with the reason
    arms: list[ArmRow]
    models: list[ModelRow]
    metrics: list[MetricRow]
    scores: list[ScoreRow]
    comparisons: list[ComparisonRow]
    survival: list[dict[str, Any]]  # rows of `survival.survivals`
    headlines: list[Headline]
    paper: list[PaperRow]
    paper_notes: list[str]
    proportion: list[ProportionCurve]
    pareto: list[Pareto]
    waterfall: list[Waterfall]
    loss_by_source: list[LossCurve]
    forgetting: list[Forgetting]
    # tokens {tree, rows, alone}, flops, nodes[] as `study plan --json`, each with `trained_by` seals
    tree: dict[str, Any]
    gain_per_flop: list[Gain]
    heat_map: HeatMap
    exposure: list[ExposureRow]
    match: list[dict[str, Any]]  # as `study plan --json`
    contamination: list[OverlapRow]
    decision_accuracy: list[DecisionAccuracy]
    law: dict[str, Any] | None  # as `study next --json`; `refusals` alone where it fails; None: nothing is scored
    forecasts: list[dict[str, Any]]  # rows of `forecasts.score_forecasts`
    limits: list[str]  # sentences: what this does not show
    history: dict[str, Any] | None  # what changed in the study file after the first score
    later_findings: list[LaterFinding]
    provenance: dict[str, ModelRow]  # by "ARM seed N"
