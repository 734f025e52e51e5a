"""The cards in a page of Sphinx, as mybinder.org's documentation includes them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest

from fedproxy.config.load import parse
from fedproxy.web.page import escape_myst, render_page
from tests.rig.state import CONFIG

NASTY = [
    "<b>bold</b> <img src=x onerror=alert(1)>",
    "`code` and ```",
    "a | b || c",
    "::: note",
    "+++ ^^^ ---",
    "$x$ {{ site }} {ref}`x` %",
    "[link](https://evil.example) ![i](x)",
    "**a** __b__ ~~c~~ # d",
    "https://evil.example www.evil.example",
    "&amp; &lt; \\ \" ' @x :tag: ^a^",
    "```{raw} html",
]
CONF = """
project = "x"
extensions = ["myst_parser", "sphinx_design"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "substitution", "attrs_inline", "fieldlist"]
myst_substitutions = {"site": "REPLACED"}
smartquotes = False
html_theme = "basic"
"""
PAGE = """
# The federation

```{include} federation_md.txt
```

## Past members

```{include} federation_past_md.txt
```

## Nobody

```{include} nobody_md.txt
```
"""


class Cards(HTMLParser):
    """The text, the links and the images of each card; `tags`: what is used in any."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cards: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self._depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "div" and "sd-card " in f"{found.get('class')} ":
            self.cards.append("")
            self._depth = 1
        elif tag == "div" and self._depth:
            self._depth += 1
        if self._depth:
            self.tags.add(tag)
            if tag == "a":
                self.links.append(found["href"] or "")
            if tag == "img":
                self.images.append(found)

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._depth:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.cards[-1] += data


# What Sphinx's extensions are to stop using of it is not ours.
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:PendingDeprecationWarning")
def test_cards_are_built_and_names_come_out_as_text(tmp_path: Path) -> None:
    from sphinx.application import Sphinx

    members = {
        f"m{at}": {
            "url": f"https://m{at}.example.org",
            "run_by": {"name": name, "url": "https://run.example/a_(b)?c=1&d=*e*"},
            "funded_by": {"name": name, "logo": f"https://fund.example/logo{at}.svg?a=1&b_c"},
            "active": at % 2 == 0,
        }
        for at, name in enumerate(NASTY)
    }
    members["bare_m"] = {"url": "unix:/run/bare.sock"}
    config = parse(json.dumps({"members": members}), {})
    nobody = parse("members: {a: {url: 'https://a.example.org'}}", {})
    for file, text in {
        "conf.py": CONF,
        "index.md": PAGE,
        "federation_md.txt": render_page(config, "myst"),
        "federation_past_md.txt": render_page(config, "myst", past=True),
        "nobody_md.txt": render_page(nobody, "myst", past=True),
    }.items():
        (tmp_path / file).write_text(text)
    warnings = StringIO()
    out = tmp_path / "out"
    Sphinx(tmp_path, tmp_path, out, tmp_path / "trees", "html", status=None, warning=warnings).build()
    assert warnings.getvalue() == ""
    page = (out / "index.html").read_text()
    assert "There are no past members." in page
    assert page.count("federation-members") == 2
    found = Cards(page)
    assert found.tags <= {"div", "p", "strong", "a", "img", "span"}
    active = [number for number in range(len(NASTY)) if number % 2 == 0]
    past = [number for number in range(len(NASTY)) if number % 2]
    texts = [" ".join(card.split()) for card in found.cards]
    assert texts == [
        *(f"m{at}.example.org Run by {NASTY[at]} Funded by {NASTY[at]}" for at in active),
        "bare_m",
        *(f"m{at}.example.org Run by {NASTY[at]} Funded by {NASTY[at]}" for at in past),
    ]
    # A past member has no address any more.
    assert set(found.links) == {
        "https://run.example/a_(b)?c=1&d=*e*",
        *(f"https://m{at}.example.org" for at in active),
    }
    assert [image["src"] for image in found.images] == [
        f"https://fund.example/logo{at}.svg?a=1&b_c" for at in (*active, *past)
    ]
    # The name is beside it.
    assert {image["alt"] for image in found.images} == {""}


def test_cards_have_the_order_of_the_config_and_one_funder_s_logo() -> None:
    text = render_page(parse(CONFIG, {}), "myst")
    assert re.findall(r"\*\*.*\*\*", text) == [
        r"**[gesis\.mybinder\.org](<https://gesis.mybinder.org>)**",
        r"**[ovh\.mybinder\.org](<https://ovh.mybinder.org>)**",
        "**shed**",
    ]
    assert text.count("https://www.gesis.org/logo.svg") == 1
    assert "gke" not in text
    assert "gke" in render_page(parse(CONFIG, {}), "myst", past=True)


def test_every_punctuation_character_of_ascii_is_escaped() -> None:
    characters = "".join(chr(at) for at in range(32, 127))
    kept = re.sub(r"\\[!-/:-@\[-`{-~]", "", escape_myst(characters))
    assert kept == "".join(filter(lambda char: char.isalnum() or char == " ", characters))
