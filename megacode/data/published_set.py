"""A data set that is made in a local work directory and published in object storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megacode.base.files import remove
from megacode.base.urls import is_url
from megacode.data import manifest as manifests
from megacode.data.document_ids import ids_path
from megacode.data.indexed import bin_path, idx_path
from megacode.data.loss_masks import mask_path
from megacode.data.objects import ObjectPath
from megacode.data.publishing import Publication

_WHERE = "--output-prefix"


class PublishedSet:
    """One data set, here and in object storage.

    Args:
        prefix: of the local one.
        url: prefix of the one to publish.
    """

    def __init__(self, prefix: Path, url: str) -> None:
        self._prefix, self._url = prefix, url
        record = prefix.with_name(f".{prefix.name}.upload.jsonl")
        self._publication = Publication(url, f"{url}.uploading", prefix, record, _WHERE)

    def begin(self, overwrite: bool) -> None:
        """Claim the place of the data set; see `Publication.begin`."""
        self._publication.begin(lambda: [url for url in self._urls() if ObjectPath(url).exists()], overwrite)

    def _urls(self) -> list[str]:
        return [str(path) for path in manifests.files_of([ObjectPath(self._url)])]

    def withdraw(self) -> None:
        """Give the place back; see `Publication.withdraw`."""
        self._publication.withdraw()

    @contextmanager
    def making(self, overwrite: bool) -> Iterator[None]:
        """Hold the place of the data set while the block makes it; give it back where the block fails."""
        try:
            self.begin(overwrite)
            yield
        except BaseException:
            self.withdraw()
            raise

    def publish(self) -> None:
        """Upload it: ids, loss mask and tokens, then the index, then the manifest."""
        parts = (ids_path, mask_path, bin_path, idx_path)
        paths = [(path(self._prefix), str(path(self._url))) for path in parts]
        # The index makes tokens readable, with or without a manifest: it follows them.
        there = [one for one in paths if one[0].exists()]
        # The old index must not lie beside new tokens, and an empty shard has neither.
        stale = [url for path, url in paths if not path.exists() or path.suffix == ".idx"]
        manifest = manifests.manifest_path(self._prefix), str(manifests.manifest_path(self._url))
        self._publication.publish([[one] for one in there], manifest, stale)

    def finish(self) -> None:
        """Give the place back; see `Publication.finish`."""
        self._publication.finish()

    def clean(self, work_dir: Path) -> None:
        """Remove the local files, which were published, and the directories that they leave empty."""
        for path in manifests.files_of([self._prefix]):
            remove(path)
        with suppress(OSError):
            for directory in self._prefix.parents:
                directory.rmdir()
                if directory == work_dir:
                    break


def published_set(prefix: Path, output_prefix: str) -> PublishedSet | None:
    """Return how a data set is published; None: its prefix is no URL."""
    return PublishedSet(prefix, output_prefix) if is_url(output_prefix) else None
