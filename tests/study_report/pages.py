"""Read what is on a page: a strict parser of HTML, and the marks of its charts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser

from markupsafe import Markup

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link", "br", "img", "hr", "input", "source", "wbr"}


class StrictPage(HTMLParser):
    """A parsed page; complains of elements that are closed out of order or never."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] not in (["style"], ["script"]):
            self.words.append(" ".join(data.split()))
            if "svg" not in self.open and {"td", "th"} & set(self.open):
                self.cells.append(self.words[-1])

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def values(self, name: str) -> set[str]:
        return {value for _, key, value in self.attributes if key == name}


class Drawn:
    """The marks of a chart, by name of element and class."""

    def __init__(self, drawing: Markup) -> None:
        self.root = ET.fromstring(str(drawing))
        self.width, self.height = map(float, self.root.attrib["viewBox"].split()[2:])

    def all(self, tag: str, *classes: str) -> list[ET.Element]:
        return [one for one in self.root.iter(f"{SVG}{tag}") if set(classes) <= set(one.get("class", "").split())]

    def texts(self, *classes: str) -> list[str]:
        return [one.text or "" for one in self.all("text", *classes)]

    def text_at(self, text: str) -> ET.Element:
        return next(one for one in self.all("text") if one.text == text)


def at(element: ET.Element, *names: str) -> list[float]:
    """Return attributes as numbers."""
    return [float(element.attrib[name]) for name in names]
