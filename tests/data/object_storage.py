"""An S3 server on this machine, and a proxy in front of it that makes faults."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "corpora"
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
    """A server that passes requests on; `fault` may change each answer."""

    port: int
    fault: Fault | None = None
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

        do_GET = do_HEAD = do_PUT = do_POST = pass_on  # noqa: N815

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
