"""A page as a browser reads it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input"}


class Page(HTMLParser):
    """What a page loads, and whether its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.labelled_by: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        assert "style" not in found
        assert not [name for name in found if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        if "src" in found:
            self.loads.append(found["src"])
        if tag == "link":
            self.loads.append(found["href"])
        if "id" in found:
            self.ids.append(found["id"])
        if "aria-labelledby" in found:
            self.labelled_by.append(found["aria-labelledby"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
