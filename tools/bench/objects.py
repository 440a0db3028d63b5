#!/usr/bin/env python3
"""Training from object storage beside training from a local file, over a connection with a delay.

    tools/bench/objects.py [--delay-ms 80] [--step-ms 1200] [--iterations 10] [--tokens 64000000]

A server that answers as S3 does, each request after a delay, runs in a process of its own. A data-parallel rank
reads 16 samples of 8,192 tokens an iteration and computes for `--step-ms`: 13 samples/s, four times the rate of a 2.8B
model on one GPU. Every contender starts with an empty cache, in turn; then again without computing anything.

    local        the file is on this machine
    s3           as shipped: windows of the next iterations are fetched ahead
    s3, asked    objects.ahead=0: windows are fetched when they are needed
    s3, block    as Megatron-core's S3 reader works: one block of 32 MiB (there 256 MiB) in memory, fetched again
                 for each window outside of it
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from loader import LENGTH, config_of, write_source

from megacode.config.objects import Objects
from megacode.data import objects
from megacode.data.indexed import bin_path
from megacode.data.loader import Loader
from megacode.data.prefetch import Prefetch
from megacode.data.windows import open_source, stream_sizes
from megacode.plan.batch import BatchSchedule
from megacode.plan.phases import build_schedule

ROWS = 16
BLOCK = 1 << 25
BUCKET = "corpora"


class Storage(BaseHTTPRequestHandler):
    """Answers HEAD and GET of ranges, each some time later, as many at once as are asked."""

    protocol_version = "HTTP/1.1"
    root, delay = Path(), 0.0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.delay)
        path = self.root / Path(self.path).name
        if not path.exists():
            return self.answer(404, 0, b"")
        size, body, asked = path.stat().st_size, b"", self.headers.get("Range")
        first, end = 0, size
        if asked:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            end = min(size, last + 1)
        if self.command == "GET":
            with path.open("rb") as file:
                body = os.pread(file.fileno(), end - first, first)
        return self.answer(206 if asked else 200, end - first, body, f"bytes {first}-{end - 1}/{size}")

    def answer(self, status: int, length: int, body: bytes, content_range: str = "") -> None:
        """Send what was found."""
        self.send_response(status)
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Sun, 01 Nov 2026 00:00:00 GMT")
        self.send_header("Content-Length", str(length))
        if status == 206:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged."""


class Server(ThreadingHTTPServer):
    """Holds many connections."""

    request_queue_size = 256


def storage(directory: Path, delay: float) -> None:
    """Serve the files of a directory, and print the port."""
    Storage.root, Storage.delay = directory, delay
    server = Server(("127.0.0.1", 0), Storage)
    print(server.server_address[1], flush=True)
    server.serve_forever()


class OneBlock:
    """A `.bin` in object storage behind one block in memory."""

    def __init__(self, url: str, dtype: np.dtype) -> None:
        self._object, self._dtype = objects.remote(bin_path(url)), dtype
        self._first, self._block = 0, memoryview(b"")

    def __getitem__(self, tokens: slice) -> np.ndarray:
        first, end = tokens.start * self._dtype.itemsize, tokens.stop * self._dtype.itemsize
        if not self._first <= first <= end <= self._first + len(self._block):
            self._block = self._object.direct(first, min(self._object.size, first + BLOCK))
            self._first = first
        return np.frombuffer(self._block[first - self._first : end - self._first], self._dtype)

    def fetch_ahead(self, firsts: Any, count: int) -> None:
        """Nothing is known of what comes next."""


def samples_per_second(path: str, cache: Path, iterations: int, step: float, ahead: int, block: bool) -> list[float]:
    """Return samples a second of training after the first iteration, and CPU milliseconds a sample."""
    objects.forget()
    objects.use(Objects(cache=str(cache), ahead=ahead))
    config = config_of({"text": path}, ROWS * 10_000, False, ROWS)
    config = config.model_copy(update={"objects": objects.settings()})
    streams = {"text": open_source(config, "text")}
    if block:
        streams["text"].data.remote = streams["text"].data._data = OneBlock(path, streams["text"].data.dtype)
    schedule = build_schedule(config, stream_sizes(streams))
    loader = Prefetch(Loader(config, schedule, BatchSchedule(config, schedule), streams), 1)
    loader.batch(0)
    cpu, begin = time.process_time(), time.perf_counter()
    for number in range(1, iterations + 1):
        time.sleep(step)
        loader.batch(number * ROWS)
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    loader.close()
    return [iterations * ROWS / took, 1000 * cpu / (iterations * ROWS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay-ms", type=float, default=80)
    parser.add_argument("--step-ms", type=float, default=1200)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64_000_000)
    parser.add_argument("--storage", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.storage:
        return storage(args.storage, args.delay_ms / 1000)
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    with tempfile.TemporaryDirectory() as directory:
        write_source(Path(directory) / "text", args.tokens, 0)
        command = [sys.executable, __file__, "--storage", directory, f"--delay-ms={args.delay_ms}"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout
            os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
            compare(args, Path(directory))
        finally:
            server.terminate()
    return None


def compare(args: argparse.Namespace, directory: Path) -> None:
    """Measure each contender and print its figures."""
    remote, local = f"s3://{BUCKET}/text", str(directory / "text")
    contenders = {
        "local": (local, 0, False),
        "s3": (remote, 4, False),
        "s3, asked": (remote, 0, False),
        "s3, block": (remote, 0, True),
    }
    print(f"{args.delay_ms:g} ms delay, {ROWS} x {LENGTH} tokens an iteration, step {args.step_ms:g} ms")
    for step in (args.step_ms / 1000, 0.0):
        first = 0.0
        for number, (name, (path, ahead, block)) in enumerate(contenders.items()):
            cache = directory / f"cache-{step}-{number}"
            rate, cpu = samples_per_second(path, cache, args.iterations, step, ahead, block)
            first = first or rate
            message = "step" if step else "no step"
            print(
                f"{message:8} {name:10} {rate:9.2f} samples/s {rate / first:7.1%} of local {cpu:7.2f} CPU-ms a sample",
                flush=True,
            )


if __name__ == "__main__":
    main()
