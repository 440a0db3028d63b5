"""Conversations are read from object storage, and published there with their loss mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.chat.job import ChatJob
from megacode.chat.making import make_chat
from megacode.data import manifest as manifests
from tests.chat.conftest import CHATML
from tests.data.object_storage import BUCKET, keys_below, proxy, server, upload

__all__ = ["proxy", "server", "upload"]  # fixtures


def test_a_published_data_set_has_the_bytes_of_a_local_one(server, proxy, upload, tokenizer, tmp_path: Path) -> None:
    rows = [{"id": f"c{n}", "prompt": f"q{n}", "completion": "w " * (n % 30 + 1)} for n in range(200)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "form.jinja").write_text(CHATML)
    url = f"s3://{BUCKET}/{tmp_path.name}/out/chat"

    def make(output: str, **more: Any) -> manifests.Manifest:
        inputs, form = (str(tmp_path / "in.jsonl"),), str(tmp_path / "form.jinja")
        work = str(tmp_path / "work dir")
        return make_chat(ChatJob(inputs, output, tokenizer, form, pack=128, work_dir=work, **more))

    local = make(str(tmp_path / "local"))
    assert make(url) == local
    assert manifests.check(url, whole=True) == local
    found = keys_below(server, url.removeprefix(f"s3://{BUCKET}/"))
    assert sorted(found) == [".bin", ".ids", ".idx", ".manifest.json", ".mask"]
    assert all(found[end] == Path(f"{tmp_path / 'local'}{end}").read_bytes() for end in found)
    assert [path for path in (tmp_path / "work dir").rglob("*") if path.is_file()] == []
    with pytest.raises(ConfigError, match="already exists"):
        make(url)
    assert keys_below(server, url.removeprefix(f"s3://{BUCKET}/")) == found
    make(url, overwrite=True)
