"""A program that preprocesses in children, which kill themselves at given moments.

    killed_preprocessing.py SETTINGS_JSON

The moments are the events that Python reports to its audit hooks: files that are opened, renamed, truncated and
removed. So a kill does not depend on the speed of the machine. Prints, as JSON, the number of events of an undisturbed
child, what each killed child found recorded at its end, and the documents of each chunk that the children encoded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

from megacode.base.files import read_json
from megacode.config.model import TokenizerConfig
from megacode.data import encoding_pass, jsonl, shuffle
from megacode.data.encoding_pass import EncodingPass
from megacode.data.machine_files import Shard
from megacode.data.preprocess import PreprocessJob, preprocess

EVENTS = ("open", "os.rename", "os.remove", "os.truncate", "os.rmdir", "os.mkdir")


def attempt(job: PreprocessJob, kill_at: int, log: Path) -> tuple[bool, int]:
    """Run a job in a child that kills itself at an event, 0: never; return whether it ended, and its events."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            events = len(pipe.read())
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == 0, events
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in EVENTS and str(Path(job.output_prefix).parent) in str(arguments):
            seen += 1
            os.write(writing, b".")
            if 0 < kill_at <= seen:  # threads flush at the same time, so one of them may step over the moment
                os.kill(os.getpid(), signal.SIGKILL)

    write = EncodingPass._write

    def logged(self: EncodingPass, chunk: object, parsed: object, place: object, *rest: object) -> int:
        descriptor = os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, f"{place.documents - self._place.documents}\n".encode())
        os.close(descriptor)
        return write(self, chunk, parsed, place, *rest)

    EncodingPass._write = logged
    sys.addaudithook(count)
    preprocess(job)
    os._exit(0)


def main() -> None:
    """Run the children."""
    settings = json.loads(sys.argv[1])
    os.fsync = lambda descriptor: None  # a kill leaves what was written; flushing thousands of times would take minutes
    jsonl.CHUNK_BYTES, encoding_pass.DURABLE_BYTES, shuffle._SORTED_BYTES = 20_000, 1, 4_000
    shard = Shard(*settings["shard"]) if settings["shard"] else None
    job = PreprocessJob(
        tuple(settings["inputs"]), settings["whole"], TokenizerConfig(kind="huggingface", path=settings["tokenizer"]),
        keys=tuple(settings["keys"]), id_key="id", append_eod=True,
        shuffle_seed=settings["seed"], shard=shard, workers=1, command="the same",
    )  # fmt: skip
    log = Path(settings["log"])
    ended, events = attempt(job, 0, log)
    assert ended
    undisturbed = [int(count) for count in log.read_text().split()]
    log.unlink()
    job = PreprocessJob(**{**vars(job), "output_prefix": settings["killed"]})
    journal = job.prefix("text").with_name(f".{job.prefix('text').name}.partial") / "record.json"
    moments, records = random.Random(settings["seed"] or 0), []
    while len(records) < settings["kills"]:
        # The first attempts are killed early, the last ones late; each part of the range gets one moment.
        part = events // 2 // settings["kills"]
        ended, _ = attempt(job, 1 + part * len(records) + moments.randint(0, part), log)
        if ended:
            break
        records.append(read_json(journal).get("place"))
    if not ended:
        ended, _ = attempt(job, 0, log)
    chunks = [int(count) for count in log.read_text().split()]
    print(json.dumps({"events": events, "records": records, "undisturbed": undisturbed, "chunks": chunks}))


if __name__ == "__main__":
    main()
