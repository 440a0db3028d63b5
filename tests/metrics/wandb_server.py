"""A server that speaks as much of W&B's protocol as its client needs to log a run and to resume it."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]

_PROJECT = {"id": "1", "name": "p", "entity": {"id": "2", "name": "team"}}


class WandbServer:
    """Keeps what it receives. wandb asks in GraphQL, and sends history lines with their position.

    Attributes:
        url: for WANDB_BASE_URL.
        runs: by the id of a run: `rows` in order, `tags`, `name`.
        keys: that requests were authorized with.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Json] = {}
        self.keys: set[str | None] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                answer: Json = {}
                if self.path == "/graphql":
                    server.keys.add(self.headers.get("Authorization"))
                    asked = json.loads(body)
                    answer = {"data": server.answer(asked["query"], asked.get("variables") or {})}
                elif self.path.endswith("/file_stream"):
                    server.append(self.path.split("/")[-2], json.loads(body))
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def append(self, run: str, sent: Json) -> None:
        """Take history lines: each request says where its first belongs."""
        part = (sent.get("files") or {}).get("wandb-history.jsonl")
        if part:
            rows, first = self.runs[run]["rows"], part["offset"]
            rows[first : first + len(part["content"])] = [json.loads(line) for line in part["content"]]

    def answer(self, query: str, given: Json) -> Json:
        """Answer a query or a mutation."""
        run = str(given.get("name"))
        if "upsertBucket" in query:
            inserted = run not in self.runs
            kept = self.runs.setdefault(run, {"rows": [], "tags": [], "name": given.get("displayName")})
            kept["tags"] = given.get("tags") or kept["tags"]
            bucket = {"id": run, "name": run, "displayName": kept["name"], "config": "{}", "project": _PROJECT}
            return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}
        if "historyTail" in query:
            return {"model": {**_PROJECT, "bucket": self._resumed(run) if run in self.runs else None}}
        if "createRunFiles" in query:
            return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": []}}
        return {}

    def _resumed(self, run: str) -> Json:
        rows = self.runs[run]["rows"]
        last = rows[-1:]
        return {
            "id": run, "name": run, "summaryMetrics": json.dumps(last[0] if last else {}), "config": "{}",
            "logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in last]), "tags": self.runs[run]["tags"],
            "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
