"""From a study to its cells: each arm at each level and seed, as a config and its plan.

Settings win in this order: base, the study's `set`, the arm's, those of levels in the order of the factors. Mistakes
of all arms are reported at once, each once, at the place of the study file (or of a base file) that makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError, DataError, MegacodeError, PlanError, Problem
from megacode.config.config_file import merge, read_layers, validate
from megacode.config.run import RunConfig
from megacode.config.setting_origins import Layer, Origins
from megacode.data.source_checks import tokenizer_facts
from megacode.planning.run_plan import Plan, SourceSizes, make_plan, read_sizes
from megacode.study.first_weights import start_of
from megacode.study.identity import LearnedPast
from megacode.study.merging import Merging, merging_of
from megacode.study.schema import THE_FACTOR, Level, PhaseUse, Study
from megacode.study.settings import nested, phases_of, seeds_of, slug
from megacode.study.twins import twin_of
from megacode.study.working_directory import advised

Levels = Mapping[str, str]
_PHASE = re.compile(r"phases\[(\d+)\]")


@dataclass(frozen=True)
class Cell:
    """One arm at one level of each factor, with one seed.

    Attributes:
        arm: its name in the study.
        original: the arm that it is a second name for; itself otherwise.
        levels: by factor.
        seed: of data order and first weights.
        plan: what it reads, and when.
        past: the identities of its states.
        full: of a twin, the plan of the full run.
        init: the cell whose last weights it starts from.
        merging: how its end is merged; None: it ends with its last phase.
    """

    arm: str
    original: str
    levels: Levels
    seed: int
    plan: Plan
    past: LearnedPast
    full: Plan | None = None
    init: Cell | None = None
    merging: Merging | None = None

    @property
    def end(self) -> str:
        """The id of the state that it ends with."""
        return self.past.ends[-1] if self.merging is None else self.merging.id

    @property
    def name(self) -> str:
        """The arm's name with its levels: `balanced-only@470m`."""
        return "@".join((self.arm, *self.levels.values()))

    @property
    def place(self) -> tuple[str, ...]:
        """Its levels, for grouping."""
        return tuple(self.levels.values())

    @property
    def tokens(self) -> int:
        """Tokens it is trained on, from its first random weights on."""
        # The init arm counts in full, since without sharing it would be trained for this arm too.
        return sum(one.plan.schedule.total_samples * one.plan.schedule.seq_length for one in self.trainings)

    @property
    def trainings(self) -> tuple[Cell, ...]:
        """What its weights have learned from, in order: the cells that `init` leads back to, and itself last."""
        return (*(self.init.trainings if self.init else ()), self)


@dataclass
class Grid:
    """The cells of a study.

    Attributes:
        study: the study.
        cells: by arm, levels and seed, in the order of the file.
        provisional: tokenizer and sources that are only declared; ids will change when they exist.
    """

    study: Study
    cells: list[Cell] = field(default_factory=list)
    provisional: list[str] = field(default_factory=list)

    def of(self, arm: str, seed: int | None = None) -> list[Cell]:
        """Return the cells of an arm with one seed, the first one unless named."""
        wanted = self.study.seeds[0] if seed is None else seed
        return [cell for cell in self.cells if cell.arm == arm and cell.seed == wanted]


def build_grid(study: Study, path: Path) -> Grid:
    """Resolve every arm, level and seed of a study.

    Args:
        study: the study.
        path: of its file, which `base` is relative to.

    Raises:
        ConfigError: settings of an arm are wrong.
        DataError: a data set cannot be read.
        PlanError: an arm cannot be trained as it is written.
    """
    return _Builder(study, path).build()


class _Builder:
    def __init__(self, study: Study, path: Path) -> None:
        self.study, self.path, self.file = study, path, path.name
        self.layers = read_layers(path.parent / study.base) if study.base else []
        self.base: dict[str, Any] = {}
        # The file itself comes first in `layers`, then what it is based on, so the strongest is merged last.
        for layer in reversed(self.layers):
            self.base = merge(self.base, layer.document)
        self.sizes: dict[str, SourceSizes] = {}
        self.errors: list[MegacodeError] = []
        self.cells: dict[tuple[str, tuple[str, ...], int], Cell] = {}
        self.names: dict[str, str] = {}

    def build(self) -> Grid:
        # 1. Every arm at every level; a mistake in one hides none in the next.
        for arm in self._ordered():
            for levels in self._combinations(arm):
                try:
                    self._add(arm, levels)
                except MegacodeError as error:
                    self.errors.append(self._placed(error, arm, levels))
        self._refuse()
        # 2. In the order of the file, second names included.
        grid = Grid(self.study)
        for arm in self.study.arms:
            for levels, seed in product(self._combinations(arm), self.study.seeds):
                grid.cells.append(self._cell(arm, levels, seed))
        grid.provisional = sorted({sentence for cell in grid.cells for sentence in _declared(cell.plan)})
        return grid

    def _cell(self, arm: str, levels: Levels, seed: int) -> Cell:
        original = self.study.original(arm)
        twin = self.cells[original, tuple(levels.values()), seed]
        if arm == original:
            return twin
        return Cell(arm, original, levels, seed, twin.plan, twin.past, twin.full, twin.init, twin.merging)

    def _ordered(self) -> list[str]:
        """Return the arms that are no second names, those that others start from first."""
        ordered: list[str] = []
        waiting = [name for name, arm in self.study.arms.items() if arm.same_as is None]
        # Rules have refused cycles, so each round finds some.
        while waiting:
            ready = [name for name in waiting if (origin := self._origin(name)) is None or origin in ordered]
            ordered += ready
            waiting = [name for name in waiting if name not in ready]
        return ordered

    def _origin(self, arm: str) -> str | None:
        init = self.study.arms[arm].init
        return self.study.original(init.arm) if init is not None and init.arm is not None else None

    def _combinations(self, arm: str) -> Iterator[dict[str, str]]:
        """Yield the levels of each factor that an arm is crossed with, in the order of the file."""
        factors = self.study.factors
        allowed = [
            [name for name, level in levels.items() if level.only is None or arm in level.only]
            for levels in factors.values()
        ]
        for chosen in product(*allowed):
            yield dict(zip(factors, chosen, strict=True))

    def _add(self, arm: str, levels: dict[str, str]) -> None:
        """Make the cells of an arm at its levels, one for each seed."""
        chosen = [(factor, name, self.study.factors[factor][name]) for factor, name in levels.items()]
        cut = next(((factor, name, level) for factor, name, level in chosen if level.twin is not None), None)
        uses = self.study.uses(arm, levels)
        config = self._config(arm, uses, self._full_levels(chosen, own=True))
        full = None
        if cut is not None:
            factor, name, level = cut
            # The full run may have its model at a level of its own, such as 470m; its order of data needs none.
            lent = config.model.model_dump(exclude_none=True)
            full = self._plan(self._config(arm, uses, self._full_levels(chosen, own=False), lent))
            assert level.twin is not None
            config = twin_of(full, config, level.twin, f"{self.file}: factors.{factor}.{name}.twin")
        # Validated once; seeds, names and directories break no rule.
        for seed in self.study.seeds:
            name = self._run_name(arm, levels, seed)
            changes = {**seeds_of(self.study, config, seed), "name": name, "run_dir": f"{self.study.directory}/{name}"}
            plan = self._plan(config.model_copy(update=changes))
            init = self._init(arm, levels, seed)
            origin = (init.end, init.plan) if init is not None else None
            start = start_of(self.study.arms[arm].init, origin, plan, f"{self.file}: arms.{arm}.init")
            past = LearnedPast(plan, _tokenizer_hash(config), start)
            merging, anneal = None, self.study.arms[arm].anneal
            if anneal is not None:
                where, share = f"{self.file}: arms.{arm}.anneal.merge", cut[2].twin if cut is not None else None
                merging = merging_of(plan, past, anneal.merge, where, full, share)
            self.cells[arm, tuple(levels.values()), seed] = Cell(
                arm, arm, levels, seed, plan, past, full, init, merging
            )

    def _run_name(self, arm: str, levels: Levels, seed: int) -> str:
        """Return the name of a cell's run, which is that of its directory, too."""
        name = slug("-".join((self.study.name, arm, *levels.values(), f"s{seed}")))
        label = "@".join((arm, *levels.values()))
        # Two runs in one directory would resume each other. Some file systems take `A` and `a` for one name.
        other = self.names.setdefault(name.casefold(), label)
        if other != label:
            message = f"the runs of {other!r} and {label!r} would both be called {name!r}"
            raise ConfigError(message, f"{self.file}: arms.{arm}", "give an arm or a level another name")
        return name

    def _full_levels(self, chosen: Sequence[tuple[str, str, Level]], own: bool) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the settings of levels, each with its place; a twin's on top of those of its full run.

        Args:
            chosen: factor, name and level.
            own: with a twin's own settings; False: only those of its full run.
        """
        settings_by_place: list[tuple[str, Mapping[str, Any]]] = []
        for factor, name, level in chosen:
            if level.of is not None:
                settings_by_place.append((f"factors.{factor}.{level.of}.set", self.study.factors[factor][level.of].set))
            if own or level.twin is None:
                settings = {factor if key == THE_FACTOR else key: value for key, value in level.set.items()}
                place = f"factors.{factor}" if THE_FACTOR in level.set else f"factors.{factor}.{name}.set"
                settings_by_place.append((place, settings))
        return settings_by_place

    def _config(
        self,
        arm: str,
        uses: Sequence[PhaseUse],
        levels: list[tuple[str, Mapping[str, Any]]],
        model: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """Return the config of an arm that uses these phases; with this model if it sets none itself."""
        settings = [("set", self.study.set), (f"arms.{arm}.set", self.study.arms[arm].set), *levels]
        phases = phases_of(self.study, uses, [one for _, one in settings])
        drawn = {source for phase in phases for source in _names(phase.get("blend"))}
        own: dict[str, Any] = {"name": slug(f"{self.study.name}-{arm}"), "phases": phases}
        own["sources"] = {name: source for name, source in self.study.sources.items() if name in drawn}
        documents = [(place, nested(one)) for place, one in settings]
        layers = [Layer(f"{self.file}: {place}", document) for place, document in reversed(documents)]
        # The study's own keys come first: mistakes in what no file sets are reported at the first layer.
        layers = [Layer(self.file, own), *layers, *self.layers]
        raw: dict[str, Any] = {}
        for layer in reversed(layers):
            raw = merge(raw, layer.document)
        # A base may be a branch's config; where an arm starts is said by the arm alone.
        raw.pop("init", None)
        if model is not None:
            raw.setdefault("model", model)
        return validate(raw, Origins(layers))

    def _plan(self, config: RunConfig) -> Plan:
        # Reading sizes opens files. Arms differ little in what decides them, so most are read once.
        key = json.dumps(
            {
                "sources": {name: source.model_dump(mode="json") for name, source in config.sources.items()},
                "held out": config.validation.fraction,
                "length": config.train.seq_length,
                "vocabulary": config.model.vocab_size,
                "tokenizer": config.tokenizer.model_dump() if config.tokenizer else None,
                "probe": config.health.alignment_probe.model_dump(mode="json"),
                "isolated": config.train.isolate_documents,
            }
        )
        # Windows of a source depend on all of these: how much is held out, how long they are, how they were tokenized.
        # And what a probe reads of them is refused if no token counts there.
        if key not in self.sizes:
            try:
                self.sizes[key] = read_sizes(config, allow_declared=True)
            except MegacodeError as error:
                raise advised(error, self.path, config) from None
        return make_plan(config, self.sizes[key])

    def _init(self, arm: str, levels: Levels, seed: int) -> Cell | None:
        origin = self._origin(arm)
        if origin is None:
            return None
        cell = self.cells.get((origin, tuple(levels.values()), seed))
        if cell is None:
            # Weights only fit a model of the same level, and a seed must not share its start with another seed.
            message = f"arm {origin!r} is not trained at {', '.join(levels.values()) or 'this scale'}"
            raise ConfigError(message, f"{self.file}: arms.{arm}.init.arm", f"add {origin!r} to `only` of that level")
        return cell

    def _placed(self, error: MegacodeError, arm: str, levels: Levels) -> MegacodeError:
        """Return an error whose places are those of the study file."""
        uses = self.study.uses(arm, levels)
        # A plan error names a phase, which several arms may share; the arm tells which use of it fails.
        of_phases = isinstance(error, PlanError)
        label = f"arm {arm!r}" + (f" at {', '.join(levels.values())}" if levels else "")

        def place(problem: Problem) -> Problem:
            # `phases[1]` of a run's config is a name in the study.
            where = _PHASE.sub(lambda match: f"phases.{uses[int(match[1])].phase}", problem.where)
            if not where.startswith(self.file) and _PHASE.search(problem.where):
                where = f"{self.file}: {where}"
            message = f"{label}: {problem.what}" if of_phases else problem.what
            return Problem(message, where, problem.fix)

        # The class decides the exit code and the heading, so it must survive.
        return type(error)(problems=[place(problem) for problem in error.problems])

    def _refuse(self) -> None:
        """Raise all errors, each once; mistakes of the input before plans that cannot be trained."""
        # An arm that is wrong says the same at every scale and seed.
        for kind in (ConfigError, DataError, PlanError):
            problems = [problem for error in self.errors if isinstance(error, kind) for problem in error.problems]
            if problems:
                raise kind(problems=list(dict.fromkeys(problems)))
        if self.errors:
            raise self.errors[0]


def _names(blend: Any) -> Iterator[str]:
    if isinstance(blend, dict):
        yield from (str(name) for name in blend)


def _tokenizer_hash(config: RunConfig) -> str:
    facts = tokenizer_facts(config.tokenizer)
    return str(facts["hash"]) if facts else ""


def _declared(plan: Plan) -> Iterator[str]:
    """Yield the tokenizer and sources that a plan takes from the config because they do not exist yet."""
    config = plan.config
    if config.tokenizer is not None and tokenizer_facts(config.tokenizer) is None:
        yield "tokenizer"
    yield from (f"source {name}" for name in plan.schedule.orders if not plan.schedule.sizes[name].identity)
