"""The cache of objects: bounded, safe against damage and kills, and never without a file that is mapped."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacode.base.errors import DataError
from megacode.data import block_cache
from megacode.data.block_cache import BlockCache
from tests.limits import HANG

SIZE = 1000
ON_DISK = SIZE + 16


def block(number: int) -> memoryview:
    return memoryview(number.to_bytes(4, "little") * (SIZE // 4))


def on_disk(cache: BlockCache) -> int:
    kept = (path for key in ("a", "b") for path in (cache.directory / key).rglob("*"))
    return sum(path.stat().st_size for path in kept if path.is_file())


def used(cache: BlockCache) -> int:
    return cache._count(0)


def fill(cache: BlockCache, numbers: range, key: str = "a") -> None:
    """Store blocks, each used a second after the one before."""
    for number in numbers:
        cache.put(key, number, block(number))
        if (path := cache._block(key, number)).exists():
            os.utime(path, (number, number))


def test_a_block_that_was_stored_is_read_back_and_no_other(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    cache.put("a", 3, block(3))
    assert cache.get("a", 3) == block(3)
    assert cache.has("a", 3)
    assert cache.get("a", 4) is None
    assert cache.get("b", 3) is None
    assert BlockCache(tmp_path / "cache", 1 << 20).get("a", 3) == block(3), "another process finds it too"


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_the_limit_is_kept_at_every_moment(tmp_path_factory, calls, blocks) -> None:
    cache = BlockCache(tmp_path_factory.mktemp("cache"), blocks * ON_DISK)
    assert calls
    for key, number, reads in calls:
        if reads:
            assert cache.get(key, number) in (None, block(number))
        else:
            cache.put(key, number, block(number))
        assert on_disk(cache) <= cache.limit
        assert on_disk(cache) == used(cache)


def test_the_least_recently_used_blocks_go(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 20 * ON_DISK)
    fill(cache, range(19))
    assert cache.get("a", 0) == block(0)  # the oldest one becomes the newest
    cache.put("a", 19, block(19))
    gone = [number for number in range(20) if not cache.has("a", number)]
    assert gone == [1, 2]


def test_a_damaged_block_is_fetched_again(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    for damage in (lambda old: b"", lambda old: old[:-1], lambda old: b"\xff" + old[1:], lambda old: old[:5]):
        cache.put("a", 3, block(3))
        path = cache._block("a", 3)
        path.write_bytes(damage(path.read_bytes()))
        assert cache.get("a", 3) is None
        assert not cache.has("a", 3)


def test_a_whole_object_that_is_in_use_stays_and_goes_afterwards(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 10 * ON_DISK)
    file = cache.whole("b", 4 * ON_DISK, lambda out: None)
    os.utime(file.name, (1, 1))  # by far the oldest
    fill(cache, range(2, 60))
    assert Path(file.name).exists()
    assert on_disk(cache) <= cache.limit
    assert cache.has("a", 59), "room is made among the blocks"
    file.close()
    fill(cache, range(60, 80))
    assert not Path(file.name).exists()


def test_a_whole_object_is_copied_once(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 20)
    copies = []
    for _ in range(2):
        with cache.whole("b", 3, lambda out: copies.append(out.write(b"abc"))) as file:
            assert file.read() == b"abc"
    assert copies == [3]


def test_an_index_that_has_no_room_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path / "cache", 1000)
    with pytest.raises(DataError, match=r"no room for an index of 1,001 bytes: its limit is 1,000") as error:
        cache.whole("b", 1001, lambda out: None)
    assert "objects.cache_bytes" in str(error.value)
    assert used(cache) == 0


def test_a_directory_that_cannot_hold_the_cache_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot hold the cache of objects") as error:
        BlockCache(tmp_path / "file", 1000)
    assert "set objects.cache" in str(error.value)


def test_a_full_disk_costs_the_cache_only_and_an_index_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = BlockCache(tmp_path / "cache", 1 << 20)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_write", full)
    cache.put("a", 3, block(3))
    assert "cannot be written" in caplog.text
    assert cache.get("a", 3) is None
    with pytest.raises(DataError, match=r"cannot be written: No space left on device"):
        cache.whole("b", 10, lambda out: None)
    assert used(cache) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from megacode.data.block_cache import BlockCache
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
BlockCache(Path(sys.argv[1]), 1 << 20).put("a", 3, memoryview(b"half" * 1000))
"""


def test_a_writer_that_is_killed_leaves_no_block_and_its_room_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cache")], timeout=HANG)
    assert done.returncode == -signal.SIGKILL
    cache = BlockCache(tmp_path / "cache", 20 * ON_DISK)
    left = list((cache.directory / "a").rglob("*.tmp"))
    assert len(left) == 1
    assert not cache.has("a", 3)
    assert used(cache) == 4016, "its room is still reserved"
    monkeypatch.setattr(block_cache, "_STALE_SECONDS", -1.0)
    fill(cache, range(40))
    assert not left[0].exists()
    assert on_disk(cache) <= cache.limit
    # A sixteenth of the limit is left for what is under way; a whole block fits twice.
    assert used(cache) - on_disk(cache) <= cache.limit / 16
    cache.put("a", 3, block(3))
    assert cache.get("a", 3) == block(3)
