"""An S3 server on this machine, and a proxy in front of it that makes faults."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacode.config.objects import Objects
from megacode.data import manifest as manifests
from megacode.data import object_requests, objects
from megacode.data.indexed import IndexedDatasetWriter

BUCKET = "corpora"
ENDINGS = (".bin", ".idx", ".mask", ".manifest.json")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "no_proxy": "127.0.0.1",
}


@dataclass
class Answer:
    """What the proxy sends back; a fault changes it."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: int | None = None  # bytes of the body that are sent before the connection is closed


Fault = Callable[[str, str, dict[str, str], Answer], None]


@dataclass
class Proxy:
    """A server that passes requests on; `fault` may change each answer, and what `refuse` answers is not passed on."""

    port: int
    fault: Fault | None = None
    refuse: Callable[[str, str], int | None] | None = None  # by method and path: a status, answered in place of it
    delay: float = 0.0
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def gets(self, ending: str = ".bin") -> list[str]:
        """The ranges of the GET requests for an object."""
        return [asked for method, path, asked in self.requests if method == "GET" and path.endswith(ending)]


@contextmanager
def proxy_before(target: tuple[str, int]) -> Iterator[Proxy]:
    """Run a proxy in front of a server."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = self.rfile.read(length)
            asked = dict(self.headers.items())
            proxy.requests.append((self.command, self.path, asked.get("Range", asked.get("range", ""))))
            if proxy.delay:
                time.sleep(proxy.delay)
            if proxy.refuse and (status := proxy.refuse(self.command, self.path)):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(*target)
            connection.request(self.command, self.path, sent, asked)
            got = connection.getresponse()
            dropped = ("connection", "transfer-encoding", "content-length", "server", "date")
            headers = {name: value for name, value in got.getheaders() if name.lower() not in dropped}
            body = got.read()
            size = got.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
            connection.close()
            answer = Answer(got.status, headers, body)
            if proxy.fault:
                proxy.fault(self.command, self.path, asked, answer)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", size if self.command == "HEAD" else str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[: answer.cut])
            if answer.cut is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing is logged."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """An S3 server with one bucket."""
    pytest.importorskip("obstore", reason="object storage is read with obstore, which is not installed")
    moto = pytest.importorskip("moto.moto_server.threaded_moto_server", reason="moto[server] is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        host, port = running.get_host_and_port()
        client_of((host, port)).create_bucket(Bucket=BUCKET)
        yield host, port
    running.stop()


@pytest.fixture
def proxy(server: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the server; this process reads through it, with an empty cache."""
    monkeypatch.setattr(object_requests, "_FIRST_PAUSE", 0.001)
    with proxy_before(server) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        objects.forget()
        objects.use(Objects(cache=str(tmp_path / "cache"), retries=3))
        yield running
    objects.use(Objects())
    objects.forget()


def client_of(server: tuple[str, int]) -> Any:
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    return boto3.client("s3", endpoint_url=f"http://{server[0]}:{server[1]}")


@pytest.fixture
def upload(server: tuple[str, int], tmp_path: Path) -> Callable[[str], str]:
    """Copy a data set to object storage, and return its prefix there."""

    def copy(prefix: str) -> str:
        there = f"{tmp_path.name}/{Path(prefix).name}"
        for ending in ENDINGS:
            if Path(prefix + ending).exists():
                client_of(server).upload_file(prefix + ending, BUCKET, there + ending)
        return f"s3://{BUCKET}/{there}"

    return copy


def upload_tree(server: tuple[str, int], root: Path, name: str) -> str:
    """Copy the files below a directory to object storage, and return its URL there."""
    client = client_of(server)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"{name}/{path.relative_to(root)}")
    return f"s3://{BUCKET}/{name}"


def keys_below(server: tuple[str, int], prefix: str) -> dict[str, bytes]:
    """The objects whose keys begin with a prefix, by the rest of the key."""
    client = client_of(server)
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {
        row["Key"].removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=row["Key"])["Body"].read()
        for row in found
    }


def random_set(prefix: Path, dtype: str = "uint16", tokens: int = 200_000, seed: int = 0) -> str:
    """Write a data set with a manifest, whose blocks all differ."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 200, tokens // 100)
    with IndexedDatasetWriter(prefix, dtype) as writer:
        writer.add(rng.integers(0, 1000, lengths.sum()), lengths)
    manifests.write(prefix, manifests.describe(prefix))
    return str(prefix)
