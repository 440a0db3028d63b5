"""`megacode data chat` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

from megacode.cli.data import script
from megacode.data import manifest as manifests
from tests.chat.conftest import CHATML


def test_it_takes_several_files_and_tells_what_it_made(tokenizer_dir: Path, tmp_path: Path, capsys, megacode) -> None:
    (tmp_path / "form.jinja").write_text(CHATML)
    for name in ("a", "b"):
        (tmp_path / f"{name} file.jsonl").write_text(json.dumps({"prompt": name, "completion": "yes"}) + "\n")
    files = [str(tmp_path / f"{name} file.jsonl") for name in ("a", "b")]
    prefix, form = str(tmp_path / "out put" / "chat"), str(tmp_path / "form.jinja")
    given = ["--input", *files, "--output-prefix", prefix, "--tokenizer", str(tokenizer_dir), "--pack", "64"]
    assert script("chat", "chat", given) == 2
    assert "the tokenizer has no chat template" in capsys.readouterr().err
    done = megacode("data", "chat", *given, "--chat-template", form)
    assert done.returncode == 0, done.stderr
    assert "2 conversations, 64 tokens as uint16" in done.stderr
    assert "packed into 1 windows of 64 tokens" in done.stderr
    manifest = manifests.read(prefix)
    assert manifest is not None
    assert "--pack 64" in manifest.command
    assert script("inspect", "inspect", [prefix, "--tokenizer", str(tokenizer_dir), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "answers end with <|im_end|>; loss on answers" in shown
    assert "end of documents" not in shown
    assert script("chat", "chat", [*given[:-1], "8", "--chat-template", form]) == 2
    assert "already exists" in capsys.readouterr().err
    assert script("chat", "chat", [*given[:-1], "8", "--chat-template", form, "--overwrite"]) == 2
    assert "2 of 2 conversations are longer than 8 tokens" in capsys.readouterr().err
    assert manifests.read(prefix) == manifest, "what failed replaced nothing"
