"""A proven export goes to a hub, here a real server on loopback; an unproven one goes nowhere."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from megacode.base.errors import CheckpointError, ConfigError, VerificationError
from megacode.cli import app
from megacode.convert import hf
from megacode.convert.hf import to_hf


@dataclass
class Hub:
    """What a server was asked for, and what it refuses: statuses by parts of paths."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    message: str = ""
    refuses: dict[str, int] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Return the hub's answer, as JSON."""
        if path.endswith("/whoami-v2"):
            return {"name": "tester", "auth": {}}
        if path.endswith("/repos/create"):
            self.created = json.loads(body)
            return {"url": f"{self.url}/group/model", "id": "group/model"}
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.message = line["value"]["summary"]
                else:
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitUrl": f"{self.url}/group/model/commit/1", "commitOid": "1", "success": True}
        return {"siblings": [], "sha": "0", "id": "group/model"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server that speaks as much of the hub's protocol as a push needs."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.asked.append(self.path)
            if self.command == "POST":  # a library may ask on its own whether the hub is there
                state.tokens.add(self.headers.get("Authorization"))
            status = next((code for part, code in state.refuses.items() if part in self.path), 200)
            document = state.answer(self.path, body) if status == 200 else {"error": "no"}
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_HEAD = _handle  # noqa: N815

        def log_message(self, *unused: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield state
    server.shutdown()
    server.server_close()


def test_a_proven_export_is_pushed_to_a_private_repository(runs: Callable[[str], Path], out: Path, hub: Hub) -> None:
    arguments = ["convert", "to-hf", str(runs("llama")), str(out), "--push-to", "group/model", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert hub.created["name"] == "model"
    assert hub.created["organization"] == "group"
    assert hub.created.get("visibility") == "private" or hub.created["private"]
    assert hub.tokens == {"Bearer hf_test"}
    assert hub.message == "tiny-llama@iter_0000003, by megacode"
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_wrong_export_is_not_pushed(
    runs: Callable[[str], Path], out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.convert.test_verify import permute_a_head

    write = hf.write_model

    def write_wrong(claim: Any, export: Path, *others: Any) -> int:
        parameters = write(claim, export, *others)
        permute_a_head(export)
        return parameters

    monkeypatch.setattr(hf, "write_model", write_wrong)
    with pytest.raises(VerificationError, match="layer 1 attention"):
        to_hf(runs("llama"), out, push_to="group/model")
    assert not [path for path in hub.asked if "whoami" not in path]


def test_an_export_without_proof_is_not_pushed(runs: Callable[[str], Path], out: Path, hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="only verified exports are pushed"):
        to_hf(runs("llama"), out, verify=False, push_to="group/model")
    assert not hub.created


@pytest.mark.parametrize(
    ("refuses", "message"),
    [({"whoami": 401}, r"refuses the token \(401\)"), ({"whoami": 418}, "answered 418")],
)
def test_a_hub_that_says_no_is_noticed_before_the_export(
    refuses: dict[str, int], message: str, runs: Callable[[str], Path], out: Path, hub: Hub
) -> None:
    hub.refuses = refuses
    with pytest.raises(ConfigError, match=message):
        to_hf(runs("llama"), out, push_to="group/model")
    assert not out.exists()


@pytest.mark.parametrize(
    ("part", "status", "said"), [("repos/create", 400, "answered 400"), ("/commit/", 403, "refuses the token")]
)
def test_an_export_that_the_hub_does_not_take_stays_on_the_disk(
    part: str, status: int, said: str, runs: Callable[[str], Path], out: Path, hub: Hub
) -> None:
    hub.refuses = {part: status}
    with pytest.raises(CheckpointError, match=f"could not be pushed to group/model: .* {said}") as caught:
        to_hf(runs("llama"), out, push_to="group/model")
    assert caught.value.exit_code == 2
    assert f"hf upload group/model {out}" in str(caught.value)
    assert (out / "config.json").exists()
    assert not hub.files


def test_a_hub_that_cannot_be_reached_is_named(
    runs: Callable[[str], Path], out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"the hub at http://127\.0\.0\.1:9 cannot be reached"):
        to_hf(runs("llama"), out, push_to="group/model")


def test_no_token_offline_and_a_wrong_id_are_each_said(
    runs: Callable[[str], Path], out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'a/b/c' is not a valid repository id"):
        to_hf(runs("llama"), out, push_to="a/b/c")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="there is no token for the hub"):
        to_hf(runs("llama"), out, push_to="group/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="huggingface_hub is offline"):
        to_hf(runs("llama"), out, push_to="group/model")
    assert not hub.asked
