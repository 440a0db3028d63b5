"""Split a run's wall clock: its starts, how each ended, and the time spent training, saving, waiting and lost.

A killed run leaves no stop event. Its work since the newest checkpoint is repeated; the next start records how much
that was (`lost_iterations`, `lost_seconds`). We take the time of its last recorded work as its end.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate, pairwise

from megacode.base.files import Json
from megacode.status.run_files import RunFiles

# In the order of the table. `idle` is time between starts; `other` is what remains of the time a process lived.
PARTS = ("training", "saving", "validating", "starting", "lost", "idle", "other")


@dataclass(frozen=True)
class Session:
    """One start of a run, until its end or the next start.

    Attributes:
        start: its `start` or `resume` event.
        events: the events after it, up to the next start.
        following: the next start's event; None for the last.
        first, last: iterations first + 1 .. last survive from this start, none if last <= first.
        training: seconds of those iterations.
    """

    start: Json
    events: tuple[Json, ...]
    following: Json | None
    first: int
    last: int
    training: float

    @property
    def begun(self) -> float:
        """Time at which its process started, in seconds since 1970."""
        return float(self.start["time"]) - self.starting

    @property
    def starting(self) -> float:
        """Seconds from its process' start until it was ready to train."""
        return float(self.start.get("seconds") or 0)

    @property
    def stop(self) -> Json | None:
        """Its stop event; None if it was killed or is still running."""
        return next((event for event in reversed(self.events) if event["event"] == "stop"), None)

    @property
    def hangs(self) -> list[Json]:
        """Its hang events."""
        return [event for event in self.events if event["event"] == "hang"]

    @property
    def saving(self) -> float:
        """Seconds the loop waited for saves."""
        saves = [event for event in self.events if event["event"] in ("save", "save_failed")]
        # An asynchronous save costs what it blocked, not what it took.
        return sum(float(event.get("blocked", event.get("seconds")) or 0) for event in saves)

    @property
    def validating(self) -> float:
        """Seconds spent on held-out losses and their gradients."""
        measured = [event for event in self.events if event["event"] in ("validation", "alignment")]
        return sum(float(event.get("seconds") or 0) for event in measured)

    @property
    def lost(self) -> float:
        """Seconds of this start's work that was repeated, after a rollback or by the next start."""
        rollbacks = [event for event in self.events if event["event"] == "rollback"]
        return sum(float(event.get("lost_seconds") or 0) for event in [*rollbacks, self.following or {}])

    @property
    def lost_iterations(self) -> int:
        """Iterations of this start that were repeated, after a rollback or by the next start."""
        rollbacks = [event for event in self.events if event["event"] == "rollback"]
        return sum(int(event.get("lost_iterations") or 0) for event in [*rollbacks, self.following or {}])

    @property
    def hung(self) -> bool:
        """Whether a hang ended it; the other ranks may have reported that as an error."""
        return bool(self.hangs) and (self.stop is None or self.stop.get("reason") == "error")

    @property
    def cause(self) -> str:
        """Why it ended: `finished`, `SIGTERM`, `time limit`, `stop file`, `spikes`, `error`, `hang`, `killed`."""
        if self.hung or self.stop is None:
            return "hang" if self.hung else "killed"
        reason = str(self.stop.get("reason"))
        return str(self.stop.get("signal") or reason) if reason == "signal" else reason.replace("_", " ")

    def end(self, files: RunFiles) -> float:
        """Return when it ended, in seconds since 1970; the present if it is still running."""
        if self.stop is not None:
            return float(self.stop["time"])
        if self.following is None and files.alive:
            return max(files.now, self._worked_until)
        if self.following is None:  # killed, and not resumed: heartbeats may be younger than its last iteration
            beats = [files.now - beat["age"] for beat in files.heartbeats]
            return max([self._worked_until, *(time for time in beats if time <= files.now)])
        # Killed and resumed: not later than the next process started, whatever its own records add up to.
        return min(self._worked_until, max(float(self.following["time"]) - _starting(self.following), self._last_event))

    @property
    def _last_event(self) -> float:
        return max(float(event["time"]) for event in (self.start, *self.events))

    @property
    def _worked_until(self) -> float:
        work = self.training + self.saving + self.validating + self.lost
        return max(self._last_event, float(self.start["time"]) + work)


def _starting(start: Json) -> float:
    return float(start.get("seconds") or 0)


def sessions(files: RunFiles) -> list[Session]:
    """Return a run's starts in order, each with its events and the iterations that survive from it."""
    events = files.events
    places = [place for place, event in enumerate(events) if event.get("event") in ("start", "resume")]
    starts = [events[place] for place in places]
    bounds = [int(start.get("iteration") or 0) for start in starts]
    # An iteration belongs to the last start that trained it. A start from further back takes over all later ones.
    # Hence the running minimum from the right: nothing after a later start's first iteration survives.
    lasts = list(accumulate(reversed(bounds[1:]), min))[::-1]
    done = files.train[-1]["iteration"] if files.train else 0
    iterations = [line["iteration"] for line in files.train]
    seconds = [0.0, *accumulate(float(line.get("seconds") or 0) for line in files.train)]
    runs = []
    for number, (place, end) in enumerate(pairwise([*places, len(events)])):
        first, last = bounds[number], [*lasts, done][number]
        low, high = bisect_right(iterations, first), bisect_right(iterations, last)
        following = starts[number + 1] if number + 1 < len(starts) else None
        later = tuple(event for event in events[place + 1 : end] if isinstance(event.get("event"), str))
        runs.append(Session(starts[number], later, following, first, last, max(0.0, seconds[high] - seconds[low])))
    return runs


def goodput(files: RunFiles, runs: list[Session]) -> Json | None:
    """Split the wall clock from the first start to the present, or to the run's end.

    Args:
        files: of the run.
        runs: its starts.

    Returns:
        None before the first start. Else `wall` and each of `PARTS` in seconds, and their `shares`, which add up to 1.
        `of_wall` is training / wall, `of_running` is training / (wall - idle); both are 0 if nothing is known.
    """
    if not runs:
        return None
    parts = dict.fromkeys(PARTS, 0.0)
    for session in runs:
        spent = {
            "training": session.training, "saving": session.saving, "validating": session.validating,
            "starting": session.starting, "lost": session.lost,
        }  # fmt: skip
        parts = {name: seconds + spent.get(name, 0.0) for name, seconds in parts.items()}
        parts["other"] += max(0.0, session.end(files) - session.begun - sum(spent.values()))
    parts["idle"] = sum(max(0.0, after.begun - before.end(files)) for before, after in pairwise(runs))
    # A sum, not the difference of two clocks. So the shares add up even if the hosts' clocks disagree.
    wall = sum(parts.values())
    return {
        "wall": round(wall, 3),
        **{name: round(seconds, 3) for name, seconds in parts.items()},
        "shares": {name: seconds / wall if wall else 0.0 for name, seconds in parts.items()},
        "of_wall": parts["training"] / wall if wall else 0.0,
        "of_running": parts["training"] / (wall - parts["idle"]) if wall > parts["idle"] else 0.0,
    }


def starts(files: RunFiles, runs: list[Session]) -> list[Json]:
    """Return one row per start: when, why the previous one ended, what it did, and what of that was lost."""
    rows = []
    for number, session in enumerate(runs):
        running = session.following is None and session.stop is None and files.alive
        kept = max(0, session.last - session.first)
        rows.append(
            {
                "number": number + 1,
                "time": session.start["time"],
                "cause": runs[number - 1].cause if number else None,
                "from_iteration": session.first,
                "iterations": kept + session.lost_iterations,
                "lost_iterations": session.lost_iterations,
                "lost_seconds": round(session.lost, 3),
                "seconds": round(session.end(files) - session.begun, 3),
                "ranks": session.start.get("ranks"),
                "host": session.start.get("host"),
                "ended": None if running else session.cause,
            }
        )
    return rows
