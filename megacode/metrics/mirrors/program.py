"""The program of a mirror: reads metrics.jsonl, sends what a service does not have, and notes how far it came.

It is a process of its own, one for each service, because the libraries start threads and processes, wait for networks,
and may hang. It fails as a whole: whoever started it starts it again. What it knows is in two files:

- `metrics.jsonl` is the truth. The curve that must be shown follows from it (`history.py`).
- `mirrors/NAME.json` says how many rows of which curve were handed over. It is written after they were. Where a service
  knows what it has, that counts instead. Otherwise rows that were not noted are sent again, with the same time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megacode.base.errors import EXIT_FAILURE, DataError, LaunchError, MirrorError
from megacode.base.files import RunDir, digest, parse_line, read_json, write_json
from megacode.base.lock import RunLock
from megacode.base.units import format_seconds
from megacode.config.mirrors import Metrics
from megacode.config.yaml_reader import parse_yaml
from megacode.metrics.mirrors.history import CurveHistory
from megacode.metrics.mirrors.mlflow_service import MlflowService
from megacode.metrics.mirrors.otlp_service import OtlpService
from megacode.metrics.mirrors.service import MirroredCurve, MirrorService
from megacode.metrics.mirrors.wandb_service import WandbService
from megacode.metrics.reader import SEGMENT, lines_backwards

POLL_SECONDS = 1.0
_ROWS = 500  # sent at once, at most
_LONGEST_MESSAGE = 300  # characters
# A server that does not answer is tried again by the next process, not for half an hour by this one.
_LIBRARIES = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "WANDB_SILENT": "true"}


def state_path(run: RunDir, name: str) -> Path:
    """Return the file that says how far a mirror is."""
    return run.mirrors / f"{name}.json"


def unsent(run: RunDir, name: str) -> int:
    """Return how many lines of metrics.jsonl a mirror has not sent, without those that only say where a run resumed."""
    if not run.metrics.exists():
        return 0
    with run.metrics.open("rb") as file:
        file.seek(read_json(state_path(run, name)).get("offset", 0))
        return sum(line.endswith(b"\n") and not line.startswith(f'{{"kind": "{SEGMENT}"'.encode()) for line in file)


class Mirror:
    """Sends the rows of a run to one service.

    Args:
        run: the run directory.
        name: of the mirror: `wandb`, `mlflow` or `opentelemetry`.

    Attributes:
        wait: `metrics.wait` of the run, in seconds.

    Raises:
        LaunchError: another process mirrors this run to this service.
        DataError: the directory holds no run, or its config has no such mirror.
    """

    def __init__(self, run: RunDir, name: str) -> None:
        self._run, self._name, self._state = run, name, state_path(run, name)
        self._config, settings = _settings(run)
        self.wait = settings.wait
        if name not in settings.mirrors:
            raise DataError(f"the run has no mirror {name}", str(run.config), f"add metrics.{name} to its config")
        place = RunDir(run.mirrors)
        place.lock = run.mirrors / f"{name}.lock"
        self._lock = RunLock(place)
        try:
            self._lock.acquire()
        except LaunchError as error:
            message = f"another process sends this run to {name}"
            raise LaunchError(message, str(place.lock), "wait until it ends") from error
        self._make: Callable[[], MirrorService] = lambda: _service(settings, name)
        self._service: MirrorService | None = None
        self._curve, self._sent, self._noted = 0, 0, (0, 0)
        self._history: CurveHistory | None = None

    def pump(self) -> int:
        """Send all lines that are there and not sent yet.

        Returns:
            How many rows were sent.

        Raises:
            MirrorError: the service cannot be reached, or refuses.
        """
        with self._explained():
            return self._pump()

    def _pump(self) -> int:
        self._lock.beat()
        history = self._read()
        if history is None or not history.rows:
            return 0
        if self._curve != history.curve:
            self._change(history)
        first, rows = self._sent, history.lines(self._sent)
        while chunk := list(islice(rows, _ROWS)):
            self._lock.beat()
            self._opened.send(chunk)
            self._sent = chunk[-1].number + 1
            self._note(chunk[-1].end, history)
        self._note(history.place, history)  # also past lines that have come again, which are no new rows
        return self._sent - first

    def close(self) -> None:
        """Send what the library holds, and end the curve."""
        with self._explained():
            if self._service is not None:
                self._service.close(left=False, finished=_is_finished(self._run))
                write_json(self._state, {**read_json(self._state), "closed": True})

    @property
    def done(self) -> bool:
        """Whether everything was sent before, and the curve was ended."""
        history, noted = self._read(), read_json(self._state)
        shown = (noted.get("curve"), noted.get("rows"))
        return history is None or (bool(noted.get("closed")) and shown == (history.curve, len(history.rows)))

    def release(self) -> None:
        """Let another process mirror this run."""
        self._lock.release()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what a library has raised in one line."""
        try:
            yield
        except Exception as error:  # each library has its own exceptions, and those of what it is built on
            text = " ".join(str(error).split())[:_LONGEST_MESSAGE]
            message = f"{type(error).__name__}: {text}" if text else type(error).__name__
            raise MirrorError(message, self._name) from error

    @property
    def _opened(self) -> MirrorService:
        assert self._service is not None
        return self._service

    def _read(self) -> CurveHistory | None:
        if self._history is None:
            start = _first_event(self._run)
            if start is None:
                return None
            self._id, began = start
            self._history = CurveHistory(self._run.metrics, began)
        self._history.read()
        return self._history

    def _change(self, history: CurveHistory) -> None:
        """Open the present curve; end the one before, if there is one."""
        noted = read_json(self._state)
        if self._service is None and 0 < noted.get("curve", 0) < history.curve and noted.get("rows", 0):
            self._open(noted["curve"])  # left while no mirror was running
        if self._service is not None:
            self._service.close(left=True, finished=False)
        have = self._open(history.curve)
        sent = noted.get("rows", 0) if noted.get("curve") == history.curve else 0
        self._sent = sent if have is None else min(have, len(history.rows))

    def _open(self, number: int) -> int | None:
        self._service = self._service or self._make()
        self._curve = number
        return self._service.open(MirroredCurve(self._run, self._id, number, self._config))

    def _note(self, offset: int, history: CurveHistory) -> None:
        if self._noted != (history.curve, offset):
            write_json(self._state, {"id": self._id, "curve": history.curve, "rows": self._sent, "offset": offset})
        self._noted = (history.curve, offset)


def send(run: RunDir, name: str) -> int:
    """Send what a service does not have of a run; return the number of rows."""
    mirror = Mirror(run, name)
    try:
        if mirror.done:
            return 0
        count = mirror.pump()
        mirror.close()
    finally:
        mirror.release()
    return count


def follow(mirror: Mirror) -> None:
    """Send rows as lines are written, until standard input is closed; then the rest.

    Args:
        mirror: to one service. The process ends `mirror.wait` seconds later at the latest.
    """
    # A job that is told to stop tells all its processes. This one is told by its run, which has more to write.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    ended = threading.Event()
    threading.Thread(target=_watch_input, args=(ended, mirror.wait), daemon=True).start()
    try:
        while not ended.wait(POLL_SECONDS):
            mirror.pump()
        mirror.pump()
        mirror.close()
    finally:
        mirror.release()


def _watch_input(ended: threading.Event, wait: float) -> None:
    """Notice that the run has ended, however it did; end this process later, even if a library hangs."""
    while os.read(0, 1):
        pass
    ended.set()
    time.sleep(wait)
    os.write(2, f"{MirrorError.title}: not done {format_seconds(wait)} after the run ended\n".encode())
    os._exit(EXIT_FAILURE)


def _service(settings: Metrics, name: str) -> MirrorService:
    for variable, value in _LIBRARIES.items():
        os.environ.setdefault(variable, value)
    if name == "wandb" and settings.wandb is not None:
        return WandbService(settings.wandb)
    if name == "mlflow" and settings.mlflow is not None:
        return MlflowService(settings.mlflow)
    assert settings.opentelemetry is not None
    return OtlpService(settings.opentelemetry)


def _settings(run: RunDir) -> tuple[dict[str, Any], Metrics]:
    """Return a run's resolved config, and its section on mirrors."""
    try:
        config = parse_yaml(run.config.read_text(encoding="utf-8"), str(run.config))
        return config, Metrics.model_validate(config.get("metrics") or {})
    except FileNotFoundError:
        raise DataError("there is no run here", str(run.path), "give the directory of a run that has started") from None
    except (AttributeError, ValidationError):  # a start writes it whole, so somebody has edited it
        fix = "`megacode plan` of this file says what is wrong"
        raise DataError("its section `metrics` cannot be used", str(run.config), fix) from None


def configured(run: RunDir) -> tuple[str, ...]:
    """Return the names of a run's mirrors.

    Raises:
        DataError: the directory holds no run.
    """
    return _settings(run)[1].mirrors


def _first_event(run: RunDir) -> tuple[str, float] | None:
    """Return an id that no other run has, and when the run began; None before it has."""
    if not run.events.exists():
        return None
    with run.events.open("rb") as file:
        line = file.readline()
    # The first event never changes: the id stays when the directory is moved, and another run there has another.
    return (digest(line)[:16], float(parse_line(line).get("time") or time.time())) if line.endswith(b"\n") else None


def _is_finished(run: RunDir) -> bool:
    last = next(lines_backwards(run.events), b"") if run.events.exists() else b""
    try:
        event = parse_line(last)
    except ValueError:
        return False
    return event.get("event") == "stop" and event.get("reason") == "finished"
