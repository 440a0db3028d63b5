"""Masked and packed data sets in object storage: read by training, merged into it, and damage named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacode.base.errors import DataError
from megacode.data import manifest as manifests
from megacode.data import objects
from megacode.data.merge import merge
from tests.data.masked import write_packed
from tests.data.object_storage import BUCKET, keys_below, proxy, server, upload
from tests.data.test_objects import batches_of

__all__ = ["proxy", "server", "upload"]  # fixtures

PHASES = [{"name": "p", "samples": 40, "blend": {"chat": 0.5, "text": 0.5}}]
WINDOWS = [[3, 5], [8], [2, 2, 2], [7], [4, 4], [1, 1, 5], [6]] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_training_reads_the_same_masks_from_object_storage(
    rank, proxy, upload, make_config, write_dataset, tmp_path: Path
) -> None:
    chat, text = write_packed(tmp_path / "chat", WINDOWS, 8, 2), write_dataset([19, 3, 24] * 9, "text")
    expected = batches_of(
        make_config({"chat": {"path": chat, "loss": "answers"}, "text": text}, phases=PHASES), rank, 2
    )
    there = {"chat": {"path": upload(chat), "loss": "answers"}, "text": text}
    found = batches_of(make_config(there, phases=PHASES, objects={"cache": str(tmp_path / "cache")}), rank, 2)
    assert found == expected
    assert proxy.gets("chat.mask")


def test_a_merged_mask_is_published_before_the_manifest(server, proxy, tmp_path: Path) -> None:
    names = [write_packed(tmp_path / name, WINDOWS, 8, number) for number, name in enumerate("ab")]
    url = f"s3://{BUCKET}/{tmp_path.name}/whole"
    merge(names, url, work_dir=str(tmp_path / "work"))
    found = keys_below(server, f"{tmp_path.name}/whole")
    assert set(found) == {".bin", ".idx", ".mask", ".manifest.json"}
    bits = [np.unpackbits(np.fromfile(f"{name}.mask", np.uint8), bitorder="little", count=168) for name in names]
    whole = np.unpackbits(np.frombuffer(found[".mask"], np.uint8), bitorder="little", count=336)
    assert whole.tolist() == [*bits[0], *bits[1]]
    assert manifests.check(url, whole=True).packed == {"seq_length": 8, "padding": 36}
    # A set that takes its place without a mask leaves none behind.
    (tmp_path / "plain").mkdir()
    plain = tmp_path / "plain" / "set"
    for ending in (".bin", ".idx"):
        Path(f"{plain}{ending}").write_bytes(Path(f"{names[0]}{ending}").read_bytes())
    manifests.write(plain, manifests.describe(plain))
    merge([str(plain)], url, work_dir=str(tmp_path / "work"), overwrite=True)
    assert ".mask" not in keys_below(server, f"{tmp_path.name}/whole")


def test_a_mask_that_is_not_uploaded_or_another_one_is_named_by_its_url(proxy, upload, server, tmp_path: Path) -> None:
    chat = write_packed(tmp_path / "chat", WINDOWS, 8, 2)
    raw = Path(f"{chat}.mask").read_bytes()
    Path(f"{chat}.mask").write_bytes(bytes([raw[0] ^ 2]) + raw[1:])
    url = upload(chat)
    with pytest.raises(DataError, match=r"s3://.*chat\.mask.*not the one that the manifest describes"):
        manifests.check(url)
    objects.place(f"{url}.mask").unlink()
    with pytest.raises(DataError, match=r"s3://.*chat\.mask.*the loss mask is missing"):
        manifests.check(url)
