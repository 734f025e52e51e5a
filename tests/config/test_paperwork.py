"""The federation.yml of mybinder.org's documentation as members of a config."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedproxy.config.load import convert, parse
from fedproxy.config.model import MemberSettings, Organisation
from fedproxy.errors import ConfigError

# In the shape of the real one: entries without who runs them, and past ones.
FILE = """
# In alphabetical order
- url_binderhub: https://one.example.org
  logo: https://fund.example/logo.svg
  funded_by: The Fund
  funded_by_link: https://fund.example

- url_binderhub: https://two.example.org/
  logo: https://cloud.example/lockup.svg
  funded_by: Some Cloud
  funded_by_link: https://cloud.example
  run_by: A Team
  run_by_link: https://team.example/en/latest/team.html#a-team
  active: false

- url_binderhub: https://binder.other.example
  logo: https://other.example/logo.png
  funded_by: Other
  funded_by_link: https://other.example
"""


def said(*entries: object) -> list[str]:
    """What is said of entries of which something is kept."""
    notes = [str(note) for note in convert(yaml.safe_dump([*entries])).notes]
    assert all(": " in note or "expected" in note for note in notes)
    return notes


def members(*entries: object) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(convert(yaml.safe_dump([*entries])).text)["members"]
    return found


def entry(**more: object) -> dict[str, object]:
    full = {
        "url_binderhub": "https://a.example.org",
        "logo": "https://a.org/l.svg",
        "funded_by": "A",
        "funded_by_link": "https://a.org",
    }
    return {key: value for key, value in (full | more).items() if value is not ...}


def test_paperwork_becomes_members_that_are_valid_and_nothing_is_said() -> None:
    imported = convert(FILE)
    assert imported.notes == []
    found = parse(imported.text, {}).members
    assert found == {
        "one": MemberSettings(
            url="https://one.example.org",
            funded_by=Organisation(
                name="The Fund", url="https://fund.example", logo="https://fund.example/logo.svg"
            ),
        ),
        "two": MemberSettings(
            url="https://two.example.org",
            funded_by=Organisation(
                name="Some Cloud", url="https://cloud.example", logo="https://cloud.example/lockup.svg"
            ),
            run_by=Organisation(name="A Team", url="https://team.example/en/latest/team.html#a-team"),
            active=False,
        ),
        # Its first label alone would say nothing.
        "binder.other.example": MemberSettings(
            url="https://binder.other.example",
            funded_by=Organisation(
                name="Other", url="https://other.example", logo="https://other.example/logo.png"
            ),
        ),
    }


def test_name_in_the_file_is_the_member_s() -> None:
    assert list(members(entry(name="gesis"))) == ["gesis"]


def test_dollar_stays_a_dollar() -> None:
    assert parse(convert(json.dumps([entry(funded_by="${HOME}")])).text, {}).members[
        "a.example.org"
    ].funded_by == Organisation(name="${HOME}", url="https://a.org", logo="https://a.org/l.svg")


@pytest.mark.parametrize(
    ("given", "note", "kept"),
    [
        (
            entry(name="Two Words"),
            "0.name: is 'Two Words', expected a member's name of up to 64 letters",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(url_binderhub="https://a.example.org/binder?x=1"),
            "0.url_binderhub: is 'https://a.example.org/binder?x=1' and became its host alone",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(funded_by=..., funded_by_link="https://www.fund.example/x"),
            "0.funded_by: is missing, and 'fund.example' was taken from `funded_by_link`",
            {
                "a.example.org": {
                    "funded_by": {
                        "name": "fund.example",
                        "url": "https://www.fund.example/x",
                        "logo": "https://a.org/l.svg",
                    }
                }
            },
        ),
        (
            entry(funded_by=..., funded_by_link=..., run_by="B"),
            "0.funded_by: is missing: add who pays for https://a.example.org",
            {"a.example.org": {"run_by": {"name": "B", "logo": "https://a.org/l.svg"}}},
        ),
        (
            entry(funded_by=..., funded_by_link=...),
            "0.logo: belongs to nobody and was left out: add `funded_by` with a name",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(funded_by=["A", 7]),
            "0.funded_by: is a list and was joined to 'A, 7': write one name",
            {
                "a.example.org": {
                    "funded_by": {"name": "A, 7", "url": "https://a.org", "logo": "https://a.org/l.svg"}
                }
            },
        ),
        (
            entry(run_by={"name": "A"}),
            "0.run_by: is a mapping and was left out: write a name as text",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(funded_by=" \n", funded_by_link=...),
            "0.funded_by: is empty and was left out: write a name",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(funded_by_link="javascript:alert(1)"),
            "0.funded_by_link: is 'javascript:alert(1)' and was left out: write an http:// or https:// URL",
            {"a.example.org": {"funded_by": {"name": "A", "logo": "https://a.org/l.svg"}}},
        ),
        (
            entry(logo=...),
            "0.logo: is missing: add it, or pages show no logo",
            {"a.example.org": {"funded_by": {"name": "A", "url": "https://a.org"}}},
        ),
        (
            entry(funded_by_link=...),
            "0.funded_by_link: is missing: add it, or `funded_by` is shown without a link",
            {"a.example.org": {"funded_by": {"name": "A", "logo": "https://a.org/l.svg"}}},
        ),
        (
            entry(active="maybe"),
            "0.active: is 'maybe' and was taken for true: write true or false",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(active=False),
            "has only past members: add one that is active before you use this config",
            {"a.example.org": {"active": False}},
        ),
        (
            entry(runby="B"),
            "0.runby: is not a key of an entry and was left out, did you mean 'run_by'?",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
        (
            entry(zzz=1),
            "0.zzz: is not a key of an entry and was left out, expected name, url_binderhub, logo,",
            {"a.example.org": {"url": "https://a.example.org"}},
        ),
    ],
)
def test_what_cannot_be_kept_is_said_with_what_to_do(
    given: dict[str, object], note: str, kept: dict[str, Any]
) -> None:
    assert [each for each in said(given) if each.startswith(note)]
    found = members(given)
    for name, expected in kept.items():
        assert {key: found[name][key] for key in expected} == expected


@pytest.mark.parametrize("name", ["<b>A</b>", "`a`", "a|b", ":::", "a &amp; b", "[a](b)", "**a**", "{{ a }}"])
def test_markup_in_a_name_is_kept_as_text_and_said(name: str) -> None:
    assert members(entry(funded_by=name))["a.example.org"]["funded_by"]["name"] == name
    (note,) = said(entry(funded_by=name))
    assert note.endswith("pages show these characters as they are, so write plain text")


@pytest.mark.parametrize("name", ["Bücher & Söhne", "A_B (c) #1 *", "$5", "A & B; C"])
def test_punctuation_is_no_markup(name: str) -> None:
    assert said(entry(funded_by=name)) == []


def test_lines_of_a_name_are_joined() -> None:
    assert members(entry(funded_by="A\n  Long\tName"))["a.example.org"]["funded_by"]["name"] == "A Long Name"


@pytest.mark.parametrize(
    ("left_out", "note"),
    [
        (["a"], "1: is a list and was left out: write a mapping with `url_binderhub`"),
        (None, "1: is empty and was left out: write a mapping with `url_binderhub`"),
        ({"funded_by": "B"}, "1.url_binderhub: is missing, and the entry was left out: add the URL"),
        ({"url_binderhub": "ftp://b"}, "1.url_binderhub: is 'ftp://b', and the entry was left out: write an"),
        ({"url_binderhub": ["x"]}, "1.url_binderhub: is a list, and the entry was left out: write an"),
        ({"url_binderhub": "unix:/run/b.sock"}, "1.url_binderhub: is 'unix:/run/b.sock', and the entry was"),
    ],
)
def test_entry_that_can_be_no_member_is_left_out_and_the_others_stay(left_out: object, note: str) -> None:
    assert list(members(entry(), left_out)) == ["a.example.org"]
    (found,) = said(entry(), left_out)
    assert found.startswith(note)


def test_two_entries_of_one_name_are_two_members() -> None:
    name = "x" * 64
    assert list(members(entry(name=name), entry(name=name), entry(name=name))) == [
        name,
        f"{name[:62]}-2",
        f"{name[:62]}-3",
    ]
    assert [note.partition(" and became")[2] for note in said(entry(name="b"), entry(name="b"))] == [
        " 'b-2': give it a `name` of its own"
    ]


@pytest.mark.parametrize(
    "url", ["http://[2001:db8::1]:8000", f"https://{'a' * 60}.{'b' * 60}.org", "http://1.2.3.4"]
)
def test_every_host_makes_a_name(url: str) -> None:
    config = parse(convert(yaml.safe_dump([entry(url_binderhub=url)])).text, {})
    assert [member.url for member in config.members.values()] == [url]


def test_fault_of_the_yaml_is_said_and_the_rest_is_kept() -> None:
    text = yaml.safe_dump([entry()], sort_keys=False)
    (note,) = convert(f"{text}  funded_by: B\n").notes
    assert str(note) == "0.funded_by: is given twice, on line 3 and line 5"
    assert str(note.place) == "5:3"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url_binderhub: https://a", "is a mapping, expected a list as in federation.yml"),
        ("a: {url_binderhub: https://a}", "is a mapping, expected a list as in federation.yml"),
        ("members: {a: {url: https://a}}", "is in fedproxy's own format already"),
        ("a: 1", "is in no format that can be imported, expected federation-redirect's config.json"),
        ("", "is in no format that can be imported"),
        ("- [a", "not valid YAML"),
        ("[]", "has no member that can be kept, expected a list of entries with `url_binderhub`"),
        ("[a, b]", "has no member that can be kept"),
    ],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(text)
    assert str(caught.value.faults[0]).startswith(message)


def test_remarks_are_bounded() -> None:
    imported = convert(yaml.safe_dump([entry(), *[[]] * 300]))
    assert len(imported.notes) == 201
    assert str(imported.notes[-1]) == "100 more remarks"


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["https://a.example.org", "http://b:80/x", "https://a.org/l.svg", "<b>", "a\nb", "false"]
    ),
    st.lists(st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
ENTRY = st.dictionaries(
    st.sampled_from(
        [
            "name",
            "url_binderhub",
            "logo",
            "funded_by",
            "funded_by_link",
            "run_by",
            "run_by_link",
            "active",
            "x",
        ]
    ),
    ANYTHING,
)


@settings(deadline=None)
@given(st.lists(ENTRY | ANYTHING, max_size=5))
def test_whatever_the_file_has_becomes_a_valid_config_with_one_member_more(entries: list[object]) -> None:
    text = json.dumps([*entries, entry(url_binderhub="https://last.example")])
    config = parse(convert(text).text, {})
    assert "https://last.example" in [member.url for member in config.members.values()]
