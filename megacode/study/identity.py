"""The id of a training state: a hash of everything that it has learned from, and of nothing else.

A state is a point of an arm: a phase, and how many of its samples have been read. Its facts are the state at the
phase's start, the phase's link in the fingerprint chain, the learning rate and the batches up to the point, and the
settings of `plan.effects.LEARNED`. Paths, names of phases, layout, bookkeeping and the version of the code are not
part of it; only a source that is not there yet is known by its path. Nor is where an arm is cut for others to branch
off: a point knows the ends of earlier phases only.

The learning rate counts as a function up to the point. So a `wsd` phase before its decay is the same as a `constant`
one of that length.
"""

from __future__ import annotations

import json
from typing import Any

from megacode.base.files import digest
from megacode.config.run import RunConfig
from megacode.plan.effects import LEARNED, effect_of, flat
from megacode.plan.learning_rate import PhaseRate
from megacode.plan.ramp import Ramp
from megacode.planning.run_plan import Plan

LAW = "megacode study 1"  # changes when a state with the same facts would mean another thing
RANDOM = "random"
# 64 bits: a study has thousands of states, and a collision among a million has a chance of 3e-8.
STATE_DIGITS = 16
Facts = dict[str, Any]


def start_from(kind: str, mark: str) -> str:
    """Return the past of an arm's first phase when it starts from the weights of a state or of a checkpoint.

    Args:
        kind: `state` (of another arm) or `checkpoint` (from elsewhere).
        mark: the state's id, or the checkpoint's seal.
    """
    return f"weights of {kind} {mark}"


def mark_of(plan: Plan, source: str) -> str:
    """Return what a source's data are known by: their content hash; before they are there, the path as declared."""
    return plan.schedule.sizes[source].identity or f"path {plan.config.sources[source].path}"


def _is_there(plan: Plan, source: str) -> bool:
    return bool(plan.schedule.sizes[source].identity)


class LearnedPast:
    """The identities of an arm's states.

    Args:
        plan: of the arm.
        tokenizer_hash: of the tokenizer that made the data; empty if there is none, or if it does not exist yet.
        start: `random`, or what `start_from` returns.

    Attributes:
        start: as given.
        ends: the id of the state at each phase's end, in order.
    """

    def __init__(self, plan: Plan, tokenizer_hash: str = "", start: str = RANDOM) -> None:
        self.plan, self.start = plan, start
        self._links = plan.schedule.fingerprints()
        self._settings = _settings(plan.config, plan.vocab_size, tokenizer_hash)
        self._ramp = Ramp(plan.config.train)
        self._ids: dict[tuple[int, int], str] = {}
        # In order: each phase's past is the end of the one before.
        self.ends: list[str] = []
        for number, phase in enumerate(plan.schedule.phases):
            self.ends.append(self.at(number, phase.samples))

    def at(self, phase: int, read: int) -> str:
        """Return the id of the state after some samples of a phase."""
        # Kept: each missing node of a study is compared with all that lies on disk.
        if (phase, read) not in self._ids:
            self._ids[phase, read] = digest(json.dumps(self.facts(phase, read), sort_keys=True))[:STATE_DIGITS]
        return self._ids[phase, read]

    def facts(self, phase: int, read: int) -> Facts:
        """Return what is hashed: nested plain values."""
        # The link is that of the phase's full length, wherever it is left.
        link, plan = self._links[phase], self.plan.schedule.phases[phase]
        # Clocks relative to the phase: where it starts is in its past.
        first = plan.first_sample
        batches = [[clock - first, size, count] for clock, size, count in self._ramp.stretches(first, first + read)]
        declared = {name: mark_of(self.plan, name) for name in link["sources"] if not _is_there(self.plan, name)}
        return {
            "law": LAW,
            "past": self.ends[phase - 1] if phase else self.start,
            "order": link["fingerprint"],
            # Only where there are any: ids of what is there must not depend on this.
            **({"declared": declared} if declared else {}),
            "read": read,
            "learning_rate": rate_facts(self.plan.rates.phases[phase], read),
            "batches": batches,
            "settings": self._settings | _of_phase(self.plan.config, phase),
        }

    def order_facts(self, phase: int) -> Facts:
        """Return what the hash of a phase's order is made of, for explanations."""
        return {key: self._links[phase][key] for key in ("seed", "seq_length", "samples", "sources")}

    def family(self, phase: int) -> str:
        """Return a key that phases share if they may be equal up to a cut: same past and same data order."""
        return f"{self.ends[phase - 1] if phase else self.start} {self._links[phase]['fingerprint']}"

    def passes(self, phase: int, read: int) -> bool:
        """Return whether an iteration of the arm ends after so many samples of a phase, with a full batch."""
        first = self.plan.schedule.phases[phase].first_sample
        # A short last batch is one of an arm that ends there; a longer arm has a full batch across the point.
        *_, last = self._ramp.stretches(first, first + read)
        return last.batch_size == self._ramp.size(last.first_sample)


def rate_facts(rate: PhaseRate, read: int) -> Facts:
    """Return what determines the learning rate of a phase up to a point, without what only matters later."""
    # Up to the peak all rules are one, so arms that differ in their decay share the warmup.
    rise = {"start": rate.start, "peak": rate.peak, "warmup": rate.warmup}
    if read <= rate.warmup:
        return rise
    if rate.rule == "inverse_sqrt":
        return {**rise, "rule": rate.rule, "final": rate.final}
    # Flat so far. How the rate will fall is not learned from yet.
    if read <= rate.samples - rate.decay or rate.final == rate.peak:
        return rise
    # `wsd` and `linear` fall alike.
    rule = "cosine" if rate.rule == "cosine" else "linear"
    return {**rise, "rule": rule, "final": rate.final, "samples": rate.samples, "decay": rate.decay}


def _settings(config: RunConfig, vocab_size: int, tokenizer_hash: str) -> Facts:
    """Return the settings of the whole run that are learned from; those of phases and sources are in `_of_phase`."""
    document = config.model_dump(mode="json", by_alias=True, exclude={"phases", "sources", "tokenizer"})
    health = document.pop("health")
    # A phase may have another recipe or optimizer: `_of_phase` says which one counts.
    document["precision"].pop("fp8")
    document["train"].pop("optimizer")
    document["train"].pop("muon")
    # Defaults that other settings decide: written out or not, the model is the same.
    document["model"] |= {
        "vocab_size": vocab_size,
        "num_query_groups": config.model.query_groups,
        "kv_channels": config.model.head_size,
    }
    # The run's seed is part of the order of data; written out as that of the weights, it changes nothing.
    if config.model.init_seed in (None, config.seed):
        document["model"].pop("init_seed")
    found = {key: value for key, value in flat(document) if effect_of(key) in LEARNED}
    return found | {"tokenizer": tokenizer_hash} | _withheld(health["spikes"])


def _withheld(spikes: Facts) -> Facts:
    """Return the settings of a spike policy that skips updates or withholds samples."""
    # `off` and `warn` leave every update as it is, so they cannot make two states differ.
    if spikes["policy"] not in ("skip", "rollback"):
        return {}
    names = [name for name in spikes if effect_of(f"health.spikes.{name}") in LEARNED]
    names = [name for name in names if name != "withhold" or spikes["policy"] == "rollback"]
    return {f"health.spikes.{name}": spikes[name] for name in names}


def _of_phase(config: RunConfig, number: int) -> Facts:
    """Return the settings that are learned from in one phase: FP8, optimizer, and how it reads what it draws."""
    phase = config.phases[number]
    recipe, facts = config.fp8_in(phase), {}
    facts["fp8"] = recipe.model_dump(mode="json") if recipe else None
    # Named only where it is not AdamW, so that identities of earlier releases keep their value.
    if config.optimizer_in(phase) == "muon":
        facts["muon"] = config.train.muon.model_dump(mode="json")
    probe = config.health.fp8_probe
    # A probe with `warn` changes nothing, and without FP8 there is none.
    if recipe and probe.every is not None and probe.policy == "fall_back":
        facts["health.fp8_probe"] = probe.model_dump(mode="json")
    # The link holds these as well, with all that belongs to them; here they name the setting where two states differ.
    drawn = {name: config.sources[name] for name, weight in sorted(phase.blend.items()) if weight > 0}
    facts["fim_rate"] = {name: source.fim_rate for name, source in drawn.items() if source.fim_rate}
    losses = {name: source.loss for name, source in drawn.items() if source.loss != "all"}
    return facts | ({"loss": losses} if losses else {})
