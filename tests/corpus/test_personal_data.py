from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacode.base.errors import ConfigError
from megacode.corpus.document import Control, Document
from megacode.corpus.personal_data import make_redactor

TOKEN = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dF3gH6"
PRIVATE = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA0Z3\n" * 12 + "-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail jo.doe+x@mail.acme.com, now", "Mail <EMAIL>, now"),
        ("<jo@uni-bonn.de>", "<<EMAIL>>"),
        ("a@b.org,c@d.org", "<EMAIL>,<EMAIL>"),
        ("from 93.184.216.34:80", "from <IP_ADDRESS>:80"),
        ("HOST=93.184.216.34, <td>93.184.216.34</td>, ip = 93.184.216.34",
         "HOST=<IP_ADDRESS>, <td><IP_ADDRESS></td>, ip = <IP_ADDRESS>"),
        (f"sk-proj-{TOKEN}{TOKEN}", "<KEY>"),
        ("key=AKIAABCDEFGH2345JKLM;", "key=<KEY>;"),
        (f"token ghp_{TOKEN}", "token <KEY>"),
        (f"npm_{TOKEN} xoxb-{TOKEN}", "<KEY> <KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkw.abcdefghijklmnop", "<KEY>"),
        (f"x\n{PRIVATE}\ny", "x\n<KEY>\ny"),
    ],
)  # fmt: skip
def test_personal_data_are_replaced_and_counted(text: str, expected: str) -> None:
    redactor = make_redactor({})
    assert redactor.redacted(text) == expected
    assert sum(redactor.replaced.values()) == expected.count("<EMAIL>") + expected.count("<KEY>") + expected.count(
        "<IP"
    )


@pytest.mark.parametrize(
    "text",
    [
        "git@github.com:acme/it.git", "git clone git@github.com/acme", "user@example.com", "root@localhost",
        "@property", "y = x@self.weight", "z = a@b.to(1)", "icon@2x.png", "npm install pkg@1.2.3",
        "https://site.org/@name", "a @ b.c", "u@v.test", "import x@y.js", "left@", "@right.com",
        "192.168.1.1 10.0.0.1 127.0.0.1 0.0.0.0 255.255.255.0", "203.0.113.7 192.0.2.1", "8.8.8.8",
        "version 91.0.4472.124", "v91.0.4472.12", ">=99.1.2.3", "pkg==99.1.2.3", "~> 99.1.2.3", "^99.1.2.3",
        "1.2.3.4", "1.3.6.1.4.1.311", "999.1.1.1",
        "chrome/91.0.4472.124", "093.184.216.34", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "x" * 36,
        "MYAKIAABCDEFGH2345JKLM", "AKIA", "eyJ", "sk_live_", "npm_config_cache",
        "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----",
        "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----", "AIzaShort",
    ],
)  # fmt: skip
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert make_redactor({}).redacted(text) == text


def test_each_search_can_be_switched_off() -> None:
    text = f"jo@acme.com 93.184.216.34 ghp_{TOKEN}"
    assert make_redactor({"emails": False}).redacted(text) == "jo@acme.com <IP_ADDRESS> <KEY>"
    assert make_redactor({"addresses": False}).redacted(text) == "<EMAIL> 93.184.216.34 <KEY>"
    assert make_redactor({"secrets": False}).redacted(text) == f"<EMAIL> <IP_ADDRESS> ghp_{TOKEN}"
    with pytest.raises(ConfigError, match=r"personal_data\.names"):
        make_redactor({"names": True})


def test_parts_are_redacted_and_control_tokens_stay() -> None:
    redactor = make_redactor({})
    document = redactor(Document("jo@acme.com!", "1", parts=("jo@acme.com", Control("<x>"), "!")))
    assert document == Document("<EMAIL>!", "1", parts=("<EMAIL>", Control("<x>"), "!"))
    assert redactor(Document("jo@acme.com", "2")).text == "<EMAIL>"
    assert redactor.replaced == {"<EMAIL>": 2}


@given(st.text(max_size=60), st.sampled_from(["a@b.com", "93.184.216.34", f"ghp_{TOKEN}", ""]), st.text(max_size=60))
def test_redacting_twice_changes_nothing_more(before: str, found: str, after: str) -> None:
    redactor = make_redactor({})
    # A word stands between: after "version" or "~" four numbers are no address.
    once = redactor.redacted(f"{before} at {found} {after}")
    assert redactor.redacted(once) == once
    assert not found or found not in once


@pytest.mark.parametrize(
    "text", ["-eyJ" * 50_000, "-xoxb-" * 50_000, "a@" * 50_000, "a." * 50_000 + "@a." * 9, "1." * 50_000]
)
def test_hostile_texts_end(text: str) -> None:
    assert isinstance(make_redactor({}).redacted(text), str)
