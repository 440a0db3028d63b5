"""A corpus that is made in a local work directory and published in object storage: shards, card, then the manifest.

What lies below `corpus/` locally lies below the URL there. All passes use the work directory; the last one uploads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson

from megacode.base.errors import ConfigError, Problem
from megacode.base.files import Json, read_json
from megacode.base.urls import is_url
from megacode.corpus.layout import CorpusDir
from megacode.corpus.made_before import discard
from megacode.corpus.recipe import Recipe
from megacode.data import object_listing, objects
from megacode.data.object_writer import ObjectWriter
from megacode.data.publishing import Publication

_WHERE = "output"
_OURS = re.compile(r"manifest\.json|card\.html|[\w.-]+/shard_\d+_of_\d+\.jsonl\.zst")


class PublishedCorpus:
    """One corpus, here and in object storage.

    Args:
        recipe: its `output` is a URL.

    Attributes:
        url: of the corpus.

    Raises:
        ConfigError: the URL is a whole bucket.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.url, self._out = recipe.output.rstrip("/"), CorpusDir(recipe.directory)
        if "/" not in self.url.partition("://")[2]:
            # The object that holds the place lies beside the corpus, which would be another bucket.
            raise ConfigError(f"{self.url} is a whole bucket", _WHERE, f"give a place in it, such as {self.url}/web")
        record = self._out.path / "upload.jsonl"
        self._publication = Publication(self.url, f"{self.url}.uploading", self._out.path, record, _WHERE)

    def manifest(self) -> Json:
        """Return the manifest that is published now; empty if there is none, or it is another program's."""
        response = ObjectWriter(f"{self.url}/manifest.json", objects.settings()).fetch()
        try:
            manifest = orjson.loads(response.content) if response is not None else {}
        except ValueError:
            return {}
        return manifest if isinstance(manifest, dict) else {}

    def made(self, identity: str) -> Json | None:
        """Return the manifest if the corpus was made from the same facts, and none of its objects is missing."""
        manifest = self.manifest()
        if manifest.get("identity") != identity:
            return None
        sizes = self._there()
        # Sizes, no hashes: this is asked at each call.
        whole = all(sizes.get(item["path"]) == item["file_bytes"] for item in manifest["outputs"])
        return manifest if whole and "card.html" in sizes else None

    def _there(self) -> Mapping[str, int]:
        """Return the size of each object below the URL, by the rest of its key."""
        objects.forget()  # this process may have listed it before it was uploaded
        below = object_listing.below(self.url)
        return {str(path).removeprefix(f"{self.url}/"): path.stat().st_size for path in below}

    def begin(self, overwrite: bool) -> None:
        """Claim the place of the corpus; see `Publication.begin`.

        Raises:
            ConfigError: also if there are objects that no recipe wrote; --overwrite would remove some of them.
        """
        foreign = [path for path in self._there() if not _OURS.fullmatch(path)]
        if foreign:
            fix = "choose another place, or remove it yourself"
            message = "no recipe made this, so it is left alone"
            raise ConfigError(problems=[Problem(message, f"{self.url}/{path}", fix) for path in foreign[:8]])
        self._publication.begin(lambda: [self.url] if self._there() else [], overwrite)

    def publish(self) -> None:
        """Upload the corpus that is complete in the work directory."""
        out = self._out
        outputs = [item["path"] for item in read_json(out.manifest)["outputs"]]
        shards = [(out.corpus / path, f"{self.url}/{path}") for path in outputs]
        known = {url for _, url in shards}
        # Shards of a corpus that is replaced would be read with these by whoever gives a glob.
        stale = [url for path in self._there() if _OURS.fullmatch(path) and (url := f"{self.url}/{path}") not in known]
        card = out.card, f"{self.url}/card.html"
        self._publication.publish([shards, [card]], (out.manifest, f"{self.url}/manifest.json"), stale)

    @property
    def is_unfinished(self) -> bool:
        """Whether an earlier call has published the corpus, and was ended before `finish`."""
        return self._publication.is_unfinished

    def finish(self) -> None:
        """Remove the local results, which were published, and give the place back.

        What the next call compares itself with stays.
        """
        out = self._out
        for path in (out.map, out.reduce, out.apply, out.corpus):
            discard(path)
        # Last: until then the next call finds that something is left to do.
        self._publication.finish()


def published_corpus(recipe: Recipe) -> PublishedCorpus | None:
    """Return how the corpus of a recipe is published; None: its output is local."""
    return PublishedCorpus(recipe) if is_url(recipe.output) else None
