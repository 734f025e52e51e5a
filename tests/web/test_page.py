from __future__ import annotations

import json
import re

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpClient

from fedproxy.config.load import parse
from fedproxy.web.page import escape_markdown, render_page, stylesheet
from tests.rig.page import Page
from tests.rig.state import CONFIG


def test_html_page_is_one_document_with_its_style_inside() -> None:
    page = render_page(parse(CONFIG, {}), "html")
    assert page.startswith("<!doctype html>")
    assert "<style>" in page
    assert "<link" not in page
    assert "GESIS &amp; &lt;friends&gt;" in page
    assert "You are with" not in page
    assert "<form" not in page


def test_shares_go_by_the_config_s_weights() -> None:
    page = render_page(parse(CONFIG, {}), "html")
    assert [page.count(share) for share in ("25&nbsp;%", "75&nbsp;%", ">0&nbsp;%")] == [1, 1, 1]


def test_markdown_page_has_a_row_for_each_member() -> None:
    lines = render_page(parse(CONFIG, {}), "markdown").splitlines()
    assert lines[0] == r"# The federation behind mybinder\.org"
    rows = [line for line in lines if line.startswith("|") and "---" not in line]
    assert rows == [
        "| Member | Share of launches | Run by | Funded by | Contact |",
        r"| [gesis](<https://gesis.mybinder.org>) | 25 % | [GESIS & \<friends\>](<https://www.gesis.org>)"
        r" | GESIS | [help@gesis\.org](<mailto:help@gesis.org>) |".replace("&", r"\&"),
        "| [ovh](<https://ovh.mybinder.org>) | 75 % |  |  |  |",
        "| shed | 0 % |  |  |  |",
        "| Member | Run by | Funded by |",
        "| gke |  | [Google](<https://cloud.google.com>) |",
    ]
    assert lines[-1].endswith(
        r"then write to the team of gesis ([help@gesis\.org](<mailto:help@gesis.org>))."
    )


def test_past_members_alone_are_a_page_of_their_own() -> None:
    config, nobody = parse(CONFIG, {}), parse("members: {a: {url: 'http://a'}}", {})
    lines = render_page(config, "markdown", past=True).splitlines()
    assert lines == [
        r"# Past members of the federation behind mybinder\.org",
        "",
        "With thanks to those who served its visitors before:",
        "",
        "| Member | Run by | Funded by |",
        "| --- | --- | --- |",
        "| gke |  | [Google](<https://cloud.google.com>) |",
    ]
    assert render_page(nobody, "markdown", past=True) == (
        "# Past members of the federation\n\nThere are no past members.\n"
    )
    page = render_page(config, "html", past=True)
    assert Page(page).open == []
    assert '<h1 id="past">Past members of the federation behind mybinder.org</h1>' in page
    assert "<h2>gke</h2>" in page
    assert "gesis" not in page
    assert "There are no past members." in render_page(nobody, "html", past=True)


def test_address_that_visitors_cannot_follow_is_on_no_page() -> None:
    text = (
        "{public_url: 'https://a.org', members: {a: {url: 'http://10.1.2.3'}, b: {url: 'https://b.a.org'}}}"
    )
    for form in ("html", "markdown", "myst", "json"):
        page = render_page(parse(text, {}), form)
        assert "https://b.a.org" in page
        assert "10.1.2.3" not in page


def test_member_with_a_ramp_is_shown_with_the_share_that_it_begins_with() -> None:
    ramp = "weight: auto, ramp: {share: 80%}"
    config = parse(f"members: {{a: {{url: 'http://a', weight: 48}}, b: {{url: 'http://b', {ramp}}}}}", {})
    assert re.findall(r"\| (\d+) % \|", render_page(config, "markdown")) == ["96", "4"]
    members = json.loads(render_page(config, "json"))["members"]
    assert [member["share"] for member in members] == [0.96, 0.04]


def test_markdown_page_names_a_contact_whose_url_says_nothing() -> None:
    text = "members: {a_b: {url: 'http://a', contact: 'http://127.0.0.1:81/'}}"
    page = render_page(parse(text, {}), "markdown")
    assert r"| [the team of a\_b](<http://127.0.0.1:81/>) |" in page
    assert page.endswith("then write to [the team of a\\_b](<http://127.0.0.1:81/>).\n")


def test_markdown_page_of_a_config_without_past_members_has_no_such_part() -> None:
    page = render_page(parse("members: {a: {url: 'http://a'}}", {}), "markdown")
    assert "Past" not in page
    assert page.startswith("# The federation\n")


def test_markdown_s_own_characters_are_escaped() -> None:
    assert escape_markdown("a|b [c](d) <e> *f* `g` h") == r"a\|b \[c\]\(d\) \<e\> \*f\* \`g\` h"


@pytest.mark.parametrize("accepted", ["gzip, br", "identity"])
async def test_files_of_pages_are_compressed_for_who_takes_it(
    aiohttp_client: AiohttpClient, accepted: str
) -> None:
    asset = stylesheet("/style.css")
    app = web.Application()
    app.router.add_get(asset.path, asset.serve)
    client = await aiohttp_client(app)
    response = await client.get(asset.url, headers={"Accept-Encoding": accepted})
    packed = "gzip" in accepted
    assert response.headers.get("Content-Encoding") == ("gzip" if packed else None)
    assert response.headers["Vary"] == "Accept-Encoding"
    assert (int(response.headers["Content-Length"]) < len(asset.text)) is packed
    assert await response.text() == asset.text
