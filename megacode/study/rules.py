"""Rules of the study file: one named function a rule, each yielding every problem it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from megacode.base.errors import Problem
from megacode.config.suggestions import did_you_mean
from megacode.study.paper import the_paper
from megacode.study.schema import THE_FACTOR, Study, StudyArm

Rule = Callable[[Study], Iterator[Problem]]
RESERVED = {
    "name": "megacode names the runs",
    "run_dir": "runs lie under the study's `runs`",
    "seed": "seeds stand under the study's `seeds`",
    "init": "an arm's first weights stand under its own `init`",
    "base": "the base stands at the top of the study",
    "phases": "name phases under the study's `phases`; phases.NAME.key changes one",
}
_NOT_IN_NAMES = "/@\\"  # of paths, and between an arm and its levels


def names_can_be_told_apart(study: Study) -> Iterator[Problem]:
    """Names become parts of file names, on file systems that may not see case."""
    yield from _names("arms", study.arms)
    yield from _names("phases", study.phases)
    for factor, levels in study.factors.items():
        yield from _names(f"factors.{factor}", levels)


def _names(where: str, names: Iterable[str]) -> Iterator[Problem]:
    # macOS and Windows take `Code` and `code` for one directory.
    seen: dict[str, str] = {}
    for name in names:
        place = f"{where}.{name}"
        signs = [sign for sign in _NOT_IN_NAMES if sign in name]
        # A line break would end a comment or a table row of the report.
        signs += [sign for sign in name if not sign.isprintable()]
        if signs or not name.strip() or name != name.strip():
            reason = f"holds {signs[0]!r}" if signs else "begins or ends with a space, or is empty"
            yield Problem(f"the name {name!r} {reason}", place, "use letters, digits, '.', '_', '+' and '-'")
        twin = seen.setdefault(name.casefold(), name)
        if twin != name:
            yield Problem(f"{name!r} and {twin!r} differ in case alone", place, "give one of them another name")


def an_arm_has_phases_or_is_a_second_name(study: Study) -> Iterator[Problem]:
    """An arm says how it trains, or which arm it is a second name for."""
    for name, arm in study.arms.items():
        where = f"arms.{name}"
        if arm.same_as is None and arm.phases is None:
            yield Problem("it has no phases", f"{where}.phases", "add phases: [NAME, ...], or same_as: ARM")
        if arm.same_as is None:
            continue
        own_keys = [key for key, value in _own(arm) if value]
        if own_keys:
            message = f"it is the same as {arm.same_as!r}, and has {' and '.join(own_keys)} of its own"
            yield Problem(message, f"{where}.same_as", f"remove same_as, or {' and '.join(own_keys)}")
        yield from _unknown_arm(study, arm.same_as, f"{where}.same_as")
        # One step only: chains of names would have to be followed everywhere.
        if arm.same_as in study.arms and study.arms[arm.same_as].same_as is not None:
            message = f"{arm.same_as!r} is itself a second name"
            other = study.arms[arm.same_as].same_as
            own = arm.same_as == name or other == name
            fix = "give one of the names phases of its own" if own else f"write same_as: {other}"
            yield Problem("it is a second name for itself" if own else message, f"{where}.same_as", fix)


def _own(arm: StudyArm) -> Iterator[tuple[str, object]]:
    yield from (("phases", arm.phases), ("set", arm.set), ("init", arm.init), ("anneal", arm.anneal))


def a_merged_end_has_one_length(study: Study) -> Iterator[Problem]:
    """A merge says how long its decay is, in one way."""
    for name, arm in study.arms.items():
        merge = arm.anneal.merge if arm.anneal is not None else None
        if merge is not None and (merge.over is None) == (merge.last is None):
            fix = "write over: 20B tokens, or last: 5 (checkpoints)"
            yield Problem("it gives the decay one length", f"arms.{name}.anneal.merge", fix)


def arms_use_known_phases(study: Study) -> Iterator[Problem]:
    """A phase that is used is written."""
    for name, arm in study.arms.items():
        for number, use in enumerate(arm.phases or ()):
            phase = use if isinstance(use, str) else use.phase
            if phase not in study.phases:
                where = f"arms.{name}.phases[{number}]"
                yield Problem(f"there is no phase {phase!r}", where, did_you_mean(phase, list(study.phases)))
    for factor, levels in study.factors.items():
        for level, one in levels.items():
            for number, used in enumerate(one.further_phases):
                if used.phase not in study.phases:
                    where = f"factors.{factor}.{level}.then[{number}]"
                    fix = did_you_mean(used.phase, list(study.phases))
                    yield Problem(f"there is no phase {used.phase!r}", where, fix)


def levels_continue_what_can_be_continued(study: Study) -> Iterator[Problem]:
    """An arm that a level continues ends with a trained state, not with a mean of checkpoints."""
    for factor, levels in study.factors.items():
        for level, one in levels.items():
            merged = [name for name, arm in study.arms.items() if arm.anneal and name in (one.only or study.arms)]
            if one.then and merged:
                message = f"{merged[0]!r} ends with a mean of checkpoints, which has no optimizer to train on with"
                fix = f"list the arms that are continued under only, without {merged[0]!r}"
                yield Problem(message, f"factors.{factor}.{level}.then", fix)


def phases_are_written_without_a_name(study: Study) -> Iterator[Problem]:
    """A phase's name is its key, and where it ends early is said where it is used."""
    for name, phase in study.phases.items():
        if "name" in phase:
            yield Problem("its name is its key", f"phases.{name}.name", "remove it")
        if "until" in phase:
            fix = f"write {{phase: {name}, until: {phase['until']}}} in the arms that leave it early"
            yield Problem("where a phase ends early is said by the arm that uses it", f"phases.{name}.until", fix)


def first_weights_come_from_somewhere(study: Study) -> Iterator[Problem]:
    """`init` names one origin, which is an arm or a place; arms do not start from each other in a circle."""
    for name, arm in study.arms.items():
        if arm.init is None:
            continue
        where = f"arms.{name}.init"
        if (arm.init.arm is None) == (arm.init.from_ is None):
            yield Problem("it names one origin", where, "write init: {arm: NAME}, or init: {from: CHECKPOINT}")
        if arm.init.arm is not None:
            yield from _unknown_arm(study, arm.init.arm, f"{where}.arm")
            circle = _circle(study, name)
            if circle:
                message = f"arms start from each other in a cycle: {' from '.join(circle)}"
                yield Problem(message, f"{where}.arm", "let one of them start from random weights")


def _circle(study: Study, name: str) -> list[str]:
    """Return the arms from one back to itself, along `init`; empty where it leads elsewhere."""
    path, here, seen = [name], name, {name}
    while True:
        original = study.original(here)
        init = study.arms[original].init if original in study.arms else None
        if init is None or init.arm is None or init.arm not in study.arms:
            return []
        here = init.arm
        # Through a second name, the circle closes at the arm that it is a name for.
        if study.original(here) == name:
            return [*path, name] if here == name else [*path, here, name]
        # Each arm of a circle reports it for itself.
        if study.original(here) in seen:  # a circle that this arm only leads to
            return []
        seen.add(study.original(here))
        path.append(here)


def counterparts_are_arms_of_the_paper(study: Study) -> Iterator[Problem]:
    """An arm that stands beside a number of the paper names one of its arms."""
    for name, arm in study.arms.items():
        if arm.paper is not None and arm.paper not in the_paper().table:
            where = f"arms.{name}.paper"
            yield Problem(
                f"the paper has no arm {arm.paper!r}", where, did_you_mean(arm.paper, list(the_paper().table))
            )


def the_baseline_is_an_arm(study: Study) -> Iterator[Problem]:
    """What others are compared with is trained too."""
    yield from _unknown_arm(study, study.baseline, "baseline")
    for number, pair in enumerate(study.compare.pairs):
        for arm in pair:
            yield from _unknown_arm(study, arm, f"compare.pairs[{number}]")
        if set(pair) <= set(study.arms) and not _meet(study, *pair):
            message = f"{pair[0]!r} and {pair[1]!r} are trained at no level together"
            fix = "remove the pair, or add one of them to `only` of a level of the other"
            yield Problem(message, f"compare.pairs[{number}]", fix)


def _unknown_arm(study: Study, name: str, where: str) -> Iterator[Problem]:
    if name not in study.arms:
        yield Problem(f"there is no arm {name!r}", where, did_you_mean(name, list(study.arms)))


def factors_fit_the_arms(study: Study) -> Iterator[Problem]:
    """Levels are limited to known arms, and twins are twins of known levels."""
    for factor, levels in study.factors.items():
        where = f"factors.{factor}"
        if not levels:
            yield Problem("it has no levels", where, "add one, such as 470m: {set: {model.preset: to-code-470m}}")
        for name, level in levels.items():
            for arm in level.only or ():
                yield from _unknown_arm(study, arm, f"{where}.{name}.only")
            if level.of is not None and (level.of not in levels or level.of == name):
                known = [other for other in levels if other != name]
                yield Problem(f"there is no level {level.of!r}", f"{where}.{name}.of", did_you_mean(level.of, known))
            elif level.of is not None and (level.twin is None or levels[level.of].twin is not None):
                message = "`of` names the full run of a twin"
                yield Problem(
                    message, f"{where}.{name}.of", "add twin: 1/16 here, and let `of` name a level without it"
                )
    # Cutting twice would round twice, and the passes would no longer agree.
    twins = [factor for factor, levels in study.factors.items() if any(level.twin for level in levels.values())]
    for factor in twins[1:]:
        message = f"{twins[0]!r} has twins too, and a run cannot be cut twice"
        yield Problem(message, f"factors.{factor}", "keep twins in one factor")


def every_arm_is_trained_somewhere(study: Study) -> Iterator[Problem]:
    """`only` leaves each arm a level of each factor, and the baseline every one."""
    for factor, levels in study.factors.items():
        for arm in study.arms:
            if levels and not any(level.only is None or arm in level.only for level in levels.values()):
                fix = f"add {arm!r} to `only` of a level"
                yield Problem(f"no level of it is crossed with arm {arm!r}", f"factors.{factor}", fix)
        for name, level in levels.items():
            for arm in level.only or ():
                original = study.original(arm) if arm in study.arms else arm
                if original in study.arms and original not in (level.only or ()):
                    message = f"{arm!r} is a second name for {original!r}, which is not trained there"
                    yield Problem(message, f"factors.{factor}.{name}.only", f"add {original!r} to it")
            # Every difference is one from the baseline at the same level.
            if level.only is not None and study.baseline not in level.only and study.baseline in study.arms:
                message = f"the baseline {study.baseline!r} is not trained there, so nothing can be compared"
                yield Problem(message, f"factors.{factor}.{name}.only", f"add {study.baseline!r} to it")


def seeds_are_different(study: Study) -> Iterator[Problem]:
    """A seed that stands twice is one run."""
    twice = sorted({seed for seed in study.seeds if study.seeds.count(seed) > 1})
    for seed in twice:
        yield Problem(f"{seed} stands twice", "seeds", "give each seed once")


def settings_are_the_arms_own(study: Study) -> Iterator[Problem]:
    """What the study decides itself is not set; phases are addressed by name."""
    yield from _settings(study, study.set, "set", frozenset(study.phases))
    for name, arm in study.arms.items():
        if arm.same_as is None:
            yield from _settings(study, arm.set, f"arms.{name}.set", _used(study, [name]))
    for factor, levels in study.factors.items():
        for name, level in levels.items():
            arms = [arm for arm in level.only or study.arms if arm in study.arms]
            # A factor that is a key has no `set` of its own in the file.
            keys = [factor if key == THE_FACTOR else key for key in level.set]
            where = f"factors.{factor}" if THE_FACTOR in level.set else f"factors.{factor}.{name}.set"
            further = frozenset(use.phase for use in level.further_phases)
            yield from _settings(study, keys, where, _used(study, arms) | further)


def _used(study: Study, arms: Iterable[str]) -> frozenset[str]:
    # A second name may be one of an arm that is not there; another rule says so.
    known = (arm for arm in arms if study.original(arm) in study.arms)
    return frozenset(use.phase for arm in known for use in study.uses(arm))


def _settings(study: Study, keys: Iterable[str], where: str, phases: frozenset[str]) -> Iterator[Problem]:
    for key in keys:
        # A phase is a list item in a run's config, and a name here: only names survive when an arm adds a phase.
        section, _, rest = key.partition(".")
        if section == "phases" and rest:
            phase, _, inside = rest.partition(".")
            if not inside:
                fix = "write for example phases.NAME.learning_rate.peak"
                yield Problem(f"{key!r} names no setting of a phase", f"{where}.{key}", fix)
            elif phase not in study.phases:
                fix = did_you_mean(phase, list(study.phases))
                yield Problem(f"there is no phase {phase!r}", f"{where}.{key}", fix)
            elif phase not in phases:
                fix = "remove it, or name one of " + ", ".join(sorted(phases))
                yield Problem(f"phase {phase!r} is not used here", f"{where}.{key}", fix)
        # A setting would be overwritten by the study, and nobody would notice.
        elif section in RESERVED:
            yield Problem(f"{section} cannot be set here", f"{where}.{key}", RESERVED[section])


def matches_name_arms(study: Study) -> Iterator[Problem]:
    """A claim is about known arms, and claims something."""
    for number, match in enumerate(study.match):
        where = f"match[{number}]"
        for arm in match.arms:
            yield from _unknown_arm(study, arm, f"{where}.arms")
        if len(set(match.arms)) < len(match.arms):
            yield Problem("an arm stands twice in it", f"{where}.arms", "name each arm once")
        if match.exposure is None and match.end is None:
            yield Problem("it claims nothing", where, "add exposure: samples, or end: PHASE")
        known = [arm for arm in match.arms if arm in study.arms]
        for arm in known:
            others = [other for other in known if other != arm]
            # The claim would be compared nowhere, and pass as if it were proven.
            if others and not any(_meet(study, arm, other) for other in others):
                message = f"{arm!r} is trained at no level that another arm of the claim is trained at"
                yield Problem(
                    message, f"{where}.arms", f"leave {arm!r} out, or add it to `only` of a level of the others"
                )
        if match.end is not None and match.end not in study.phases:
            fix = did_you_mean(match.end, list(study.phases))
            yield Problem(f"there is no phase {match.end!r}", f"{where}.end", fix)


def metrics_are_declared_once(study: Study) -> Iterator[Problem]:
    """Each difference is corrected in one family, so a metric belongs to one."""
    seen: set[str] = set()
    for key, names in (("primary", study.compare.primary), ("secondary", study.compare.secondary)):
        for number, name in enumerate(names):
            if name in seen:
                yield Problem(f"{name!r} is declared twice", f"compare.{key}[{number}]", "name it in one place")
            seen.add(name)


def forecasts_are_intervals(study: Study) -> Iterator[Problem]:
    """A forecast's interval holds its value, and the levels that it is for are known."""
    known = [level for levels in study.factors.values() for level in levels]
    for name, arm in study.arms.items():
        for metric, forecast in arm.forecast.items():
            where = f"arms.{name}.forecast.{metric}"
            if not forecast.low <= forecast.value <= forecast.high:
                message = f"the value {forecast.value:g} is not between {forecast.low:g} and {forecast.high:g}"
                yield Problem(message, where, "write low, value and high in this order")
            for level in forecast.at:
                if level not in known:
                    yield Problem(f"there is no level {level!r}", f"{where}.at", did_you_mean(level, known))


def _meet(study: Study, arm: str, other: str) -> bool:
    """Return whether two arms are trained at one combination of levels."""
    return all(
        any(level.only is None or {arm, other} <= set(level.only) for level in levels.values())
        for levels in study.factors.values()
    )


# All of them run, so that one reading of the file reports every mistake.
RULES: tuple[Rule, ...] = (
    names_can_be_told_apart,
    an_arm_has_phases_or_is_a_second_name,
    a_merged_end_has_one_length,
    arms_use_known_phases,
    levels_continue_what_can_be_continued,
    phases_are_written_without_a_name,
    first_weights_come_from_somewhere,
    counterparts_are_arms_of_the_paper,
    the_baseline_is_an_arm,
    factors_fit_the_arms,
    every_arm_is_trained_somewhere,
    seeds_are_different,
    settings_are_the_arms_own,
    matches_name_arms,
    metrics_are_declared_once,
    forecasts_are_intervals,
)
