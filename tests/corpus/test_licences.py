from __future__ import annotations

from typing import Any

import pytest

from megacode.base.errors import ConfigError
from megacode.corpus.document import Document
from megacode.corpus.licences import LicenceSettings, make_licence_filter, permissive_identifiers


def reason(licence: Any, **settings: Any) -> str | None:
    return make_licence_filter(settings)(Document("x", "1", {"license": licence}))


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("MIT", None),
        ("mit", None),
        ("MIT OR GPL-3.0-only", None),
        ("GPL-3.0-only OR MIT", None),
        ("MIT AND GPL-2.0-only", "not permissive"),
        ("MIT AND (Apache-2.0 OR GPL-3.0-only)", None),
        ("MIT AND (LGPL-3.0-only OR GPL-3.0-only)", "not permissive"),
        ("Apache-2.0 WITH LLVM-exception", None),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "not permissive"),
        ("GPL-2.0+", "not permissive"),
        (["MIT", "BSD-3-Clause"], None),
        (["MIT", "GPL-3.0-only"], "not permissive"),
        ("(MIT", "licence not in SPDX"),
        ("MIT/X11", "licence not in SPDX"),
        ("(" * 3_000 + "MIT" + ")" * 3_000, None),
        ("", "no licence"),
        ("NOASSERTION", "no licence"),
        (None, "no licence"),
        ([], "no licence"),
        ([None, 3], "no licence"),
    ],
)
def test_a_licence_is_permissive_or_the_reason_says_why_not(licence: Any, expected: str | None) -> None:
    assert reason(licence) == expected


def test_documents_without_a_licence_can_be_kept_and_are_marked() -> None:
    keep = make_licence_filter({"unlicensed": "keep", "field": "meta.license"})
    documents = [Document("x", "1", {"meta": {"license": licence}}) for licence in ("MIT", None)]
    assert [keep(document) for document in documents] == [None, None]
    assert [document.fields["license_type"] for document in documents] == ["permissive", "no_license"]


def test_the_list_can_be_cut_added_to_and_taken_from() -> None:
    assert reason("Beerware") is None
    assert reason("Beerware", lowest_rating="bronze") == "not permissive"
    assert reason("MIT", never=["MIT"]) == "not permissive"
    assert reason("MPL-2.0") == "not permissive"
    assert reason("MPL-2.0", also=["MPL-2.0"]) is None
    assert reason("Acme License/1", also=["Acme License/1"]) is None


def test_the_list_is_whole() -> None:
    assert len(permissive_identifiers(LicenceSettings())) > 200
    assert not {"gpl-3.0-only", "agpl-3.0-only", "lgpl-2.1-only", "cc-by-sa-4.0"} & permissive_identifiers(
        LicenceSettings()
    )


def test_mistakes_in_the_settings_are_input_errors() -> None:
    with pytest.raises(ConfigError, match=r"licences.unlicensed"):
        make_licence_filter({"unlicensed": "maybe"})
