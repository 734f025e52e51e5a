"""The pages of the edge's own answers: which template is taken, what it can say, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedproxy.config.load import parse
from fedproxy.errors import ConfigError, ExchangeError
from fedproxy.web.error_pages import LARGEST, LOGO, error_pages, policy
from fedproxy.wire.pages import AUTO, LINK, NONE, SLOTS, Pages

MEMBERS = "members: {a: {url: 'https://a.example'}}\n"
VALUES = {
    "status": "503",
    "phrase": "Service Unavailable",
    "detail": "Nobody is there.",
    "request_id": "abc",
    "retry_after": "30",
    "start": "/v2/gh/a/b/HEAD",
}
SITUATIONS = ("down", "busy", "unreachable", "session", "gone", "limit", "refused", "error")
DOCUMENT = Path(__file__).parents[2] / "docs" / "error-pages.md"


def pages(folder: Path | None = None, text: str = "", **about: str) -> Pages:
    settings: dict[str, str] = {**about, **({"templates": str(folder)} if folder else {})}
    made = error_pages(parse(f"{MEMBERS}pages: {settings}\n{text}", {}))
    return Pages(made.policy.encode(), made.pages)


def shown(
    made: Pages, situation: str = "error", retry: str = NONE, *, launch: bool = False, languages: bytes = b""
) -> str:
    return made.find(situation, launch, retry).find(languages).fill(VALUES).decode()


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def faults(folder: Path, files: Mapping[str, str | bytes]) -> list[str]:
    """What is wrong, without the folder."""
    write(folder, files)
    with pytest.raises(ConfigError) as caught:
        pages(folder)
    assert {fault.path for fault in caught.value.faults} == {"pages.templates"}
    return [fault.message.replace(f"{folder}/", "") for fault in caught.value.faults]


# -- the built-in page


class Elements(HTMLParser):
    """The elements of a page that are open, and that all are closed in their order."""

    EMPTY = frozenset(("meta", "link", "img"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("retry", [NONE, LINK, AUTO])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_built_in_page_is_whole_in_every_situation(situation: str, retry: str) -> None:
    made = pages(site="<Binder>", logo="https://a/l.svg", status_url="https://s.example/?a=1&b=2")
    for launch in (False, True):
        text = shown(made, situation, retry, launch=launch)
        seen = Elements(text).seen
        assert seen.count("h1") == seen.count("title") == seen.count("main") == 1
        assert "&lt;Binder&gt;" in text and "<Binder>" not in text
        assert 'href="https://s.example/?a=1&amp;b=2"' in text
        assert "<code>abc</code>" in text and "503 Service Unavailable" in text
        assert (f'src="{LOGO}"' in text) is (situation != "refused")
        assert ("Try again</a>" in text) is (retry != NONE and situation != "gone")
        assert (
            ("<script" in text)
            is ('http-equiv="refresh"' in text)
            is ("data-seconds" in text.partition("<body")[2])
            is (retry == AUTO)
        )
        assert "<p></p>" not in text


def test_launch_has_its_own_words() -> None:
    made = pages()
    for situation in ("down", "busy", "unreachable"):
        assert "your repository" not in " ".join(shown(made, situation).split())
        assert "your repository" in " ".join(shown(made, situation, launch=True).split())
    for situation in ("session", "gone", "limit", "refused", "error"):
        assert shown(made, situation) == shown(made, situation, launch=True)


def test_session_that_has_ended_can_be_launched_again() -> None:
    assert 'href="/v2/gh/a/b/HEAD">Start a new session' in shown(pages(), "gone")


def test_site_is_the_public_host_by_default_and_may_be_nothing() -> None:
    assert "<title>Service Unavailable - mybinder.org</title>" in shown(
        pages(text="public_url: https://mybinder.org")
    )
    text = shown(pages())
    assert "<title>Service Unavailable</title>" in text and "<header>" not in text


def test_policy_names_the_script_and_nothing_else_that_runs() -> None:
    assert re.fullmatch(
        r"default-src 'none'; script-src 'sha256-[A-Za-z0-9+/]{43}='; style-src 'unsafe-inline'; "
        r"img-src 'self' data:; base-uri 'none'; form-action 'none'",
        policy(),
    )
    assert pages().policy == policy().encode()


def _all(kind: type[ExchangeError]) -> Iterator[type[ExchangeError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _all(each)


def test_there_is_a_page_for_every_error() -> None:
    kinds = set(_all(ExchangeError))
    assert {kind.situation for kind in kinds} == set(SITUATIONS)
    made = pages()
    for kind in kinds:
        assert shown(made, kind.situation)


# -- the operator's templates


def test_situation_goes_before_language_and_what_has_no_template_is_built_in(tmp_path: Path) -> None:
    made = pages(
        write(
            tmp_path,
            {
                "error.de.html": "Fehler {{ status }}",
                "down.html": "down {{ launch }} {{ can_retry }} {{ retries }}",
                "launch.html": "launch {{ lang }}",
                "launch.de.html": "Start {{ lang }}",
                "README.md": b"\xff",
                ".hidden.html": b"\xff",
            },
        )
    )
    german = b"de-AT, en;q=0.5"
    assert shown(made, "down", AUTO, languages=german) == "down False True True"
    assert shown(made, "down", NONE, launch=True) == "down True False False"
    for situation in ("busy", "unreachable"):
        assert shown(made, situation, launch=True, languages=german) == "Start de"
        assert shown(made, situation, launch=True, languages=b"fr") == "launch en"
    for situation in ("busy", "gone", "error"):
        assert shown(made, situation, languages=german) == "Fehler 503"
        assert "<!doctype html>" in shown(made, situation, languages=b"fr")
    assert made.find("error", False, NONE).several and not made.find("down", False, NONE).several


def test_usual_page_says_its_language(tmp_path: Path) -> None:
    files = {
        "error.html": '<html lang="fr-CA">usuel',
        "error.en.html": "English {{ lang }}",
        "error.fr.html": "fr",
        "gone.html": '<html lang="?!">x',
    }
    made = pages(write(tmp_path, files))
    found = made.find("error", False, NONE)
    assert [found.find(each).language for each in (b"", b"fr", b"fr-CA", b"en")] == [
        b"fr-CA",
        b"fr",
        b"fr-CA",
        b"en",
    ]
    assert shown(made, "error", languages=b"en") == "English en"
    assert made.find("gone", False, NONE).find(b"").language == b"en"


def test_templates_extend_the_built_in_page_and_include_parts(tmp_path: Path) -> None:
    files = {
        "refused.html": '{% extends "fedproxy/error.html" %}\n'
        '{% block advice %}{% include "_who.html" %}{% endblock %}',
        "_who.html": "\ufeff<p>Ask {{ site }}.</p>",
    }
    text = shown(pages(write(tmp_path, files), site="A & B"), "refused")
    assert "<p>Ask A &amp; B.</p>" in text and "If you think" not in text and "Access is not allowed" in text


def test_variables_are_as_the_documentation_says(tmp_path: Path) -> None:
    documented = DOCUMENT.read_text()
    for name in (
        "site",
        "logo",
        "status_url",
        "public_url",
        "situation",
        "launch",
        "lang",
        "can_retry",
        "retries",
        "retry",
        *SLOTS,
    ):
        assert f"`{name}`" in documented
    examples = re.findall(r"```html\n(.*?)```", documented, re.DOTALL)
    made = pages(write(tmp_path, dict(zip(("down.html", "refused.html"), examples, strict=True))), site="S")
    assert "S is down at the moment" in shown(made, "down", AUTO, launch=True)
    assert "mailto:team@example.org" in shown(made, "refused")
    for name in SITUATIONS:
        assert f"`{name}.html`" in documented


def test_what_is_the_same_is_handed_over_once(tmp_path: Path) -> None:
    made = error_pages(parse(f"{MEMBERS}pages: {{templates: '{write(tmp_path, {'error.html': 'x'})}'}}", {}))
    assert len({id(text) for found in made.pages.values() for _, text in found}) == 1


def test_page_is_utf_8_whatever_a_template_makes(tmp_path: Path) -> None:
    assert shown(pages(write(tmp_path, {"error.html": r'{{ "\ud800" }}é'}))) == "?é"


def test_templates_are_read_anew_each_time(tmp_path: Path) -> None:
    assert shown(pages(write(tmp_path, {"error.html": "one"}))) == "one"
    assert shown(pages(write(tmp_path, {"error.html": "two"}))) == "two"


# -- what is refused


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a\n{% if %}", "error.html:2: Expected an expression, got 'end of statement block'"),
        ("{{ a }", "error.html:1: unexpected '}'"),
        ("\n\n{{ nme }}", "error.html:3: 'nme' is undefined"),
        ("a{% if launch %}{{ x }}{% endif %}", "error.html:1: 'x' is undefined"),
        ("{{ 1 / 0 }}", "error.html:1: division by zero"),
        ("\n{% include 'no.html' %}", "error.html:2: no template 'no.html'"),
        ("{% include 'error.html' %}", "error.html:1: includes or extends itself"),
        ("{% extends 'error.html' %}", "error.html:1: includes or extends itself"),
        (
            "{{ site.__class__.__mro__ }}",
            "error.html:1: access to attribute '__class__' of 'str' object is unsafe.",
        ),
        ("{{ nothing() }}", "error.html:1: 'nothing' is undefined"),
        (
            "{% for i in range(1000000) %}{% endfor %}",
            "error.html:1: Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).",
        ),
        ("  \n", "error.html makes an empty page"),
        ("\u00e9" * 200_000, "error.html is too large, expected at most 256 KiB"),
        ("{% for i in range(99999) %}xxxx{% endfor %}", "error.html makes a page that is too large"),
        (b"a\nb\xff", "error.html:2: is not UTF-8: invalid start byte"),
    ],
)
def test_template_that_cannot_be_used_is_refused(tmp_path: Path, text: str | bytes, fault: str) -> None:
    assert faults(tmp_path, {"error.html": text}) == [fault]


@pytest.mark.parametrize("name", ["status", "start"])
@pytest.mark.parametrize(
    "text",
    [
        "{% if NAME %}a{% endif %}",
        "{% if NAME == 503 %}a{% endif %}",
        "{% if NAME > 1 %}a{% endif %}",
        "{{ NAME | upper }}",
        "{{ NAME | urlencode }}",
        "{{ NAME | int }}",
        "{{ NAME + 1 }}",
        "{{ NAME[0] }}",
        "{% for i in NAME %}{% endfor %}",
        "{% autoescape false %}{{ NAME }}{% endautoescape %}",
        "{% set x %}{{ NAME }}{% endset %}{{ x | upper }}",
        "{% set x %}{{ NAME }}{% endset %}{{ x | urlencode }}",
        "{% set x %}{{ NAME }}{% endset %}{{ x[:3] }}",
    ],
)
def test_what_a_request_brings_can_only_be_printed(tmp_path: Path, text: str, name: str) -> None:
    (fault,) = faults(tmp_path, {"error.html": text.replace("NAME", name)})
    assert fault.startswith("error.html")
    assert "only when the page is sent" in fault


def test_what_a_request_brings_can_be_printed_anywhere(tmp_path: Path) -> None:
    text = '<a href="{{ start }}">{{ detail | safe }} {{ "%s" | safe | format(status) }}</a>'
    assert shown(pages(write(tmp_path, {"error.html": text}))) == (
        '<a href="/v2/gh/a/b/HEAD">Nobody is there. 503</a>'
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<script>a</script>", "has <script>, and a page may have no <script>"),
        ('<base href="/">', 'has <base href="/">, and a page may have no <base>'),
        ("<form></form>", "has <form>, and a page may have no <form>"),
        ('<p onclick="a">', 'has <p onclick="a">, and a page may have no script'),
        ("<a href=' JavaScript:a'>", "has <a href=' JavaScript:a'>, and a page may have no script"),
        (
            '<img src="https://a/b">',
            'has <img src="https://a/b">, expected an image of this edge (/...) or a data: URL',
        ),
        ('<img src="//a/b">', 'has <img src="//a/b">, expected an image of this edge (/...) or a data: URL'),
        (r'<img src="/\a">', r'has <img src="/\a">, expected an image of this edge (/...) or a data: URL'),
        ('<img src="/a" srcset="b">', 'has <img src="/a" srcset="b">, expected src without srcset'),
        (
            '<link rel="StyleSheet" href="/a.css">',
            'has <link rel="StyleSheet" href="/a.css">, and a page may load no other file, expected <style>',
        ),
        (
            '<meta http-equiv="Refresh" content="1">',
            'has <meta http-equiv="Refresh" content="1">, expected {{ retry }} in its place',
        ),
    ],
)
def test_what_the_policy_forbids_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    assert faults(tmp_path, {"error.html": text}) == [f"error.html {fault}"]


def test_what_the_policy_allows_is_taken(tmp_path: Path) -> None:
    text = (
        '<html lang><head>{{ retry }}<link rel="icon" href="data:,"></head><img><img src="/a.png">'
        "<img src='data:image/png;base64,AA'><p style='color: red'><a href='https://a'>a</a>"
    )
    assert shown(pages(write(tmp_path, {"error.html": text})), "down", AUTO).count("<img") == 3


def test_misspelt_and_useless_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    known = (
        "expected down.html, busy.html, unreachable.html, session.html, gone.html, limit.html, refused.html, "
    )
    hint = "(with a language as in error.de.html, or a leading _ for a part of others)"
    assert faults(tmp_path, {"lauch.html": "", "error.de_DE.html": "", "x.html": ""}) == [
        f"error.de_DE.html is no known page, did you mean error.html? {hint}",
        f"lauch.html is no known page, did you mean launch.html? {hint}",
        f"x.html is no known page, {known}launch.html, error.html {hint}",
    ]


def test_folder_without_a_page_is_refused(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, {"_part.html": "", "error.htm": ""})
    assert fault == f"{tmp_path} has no template, expected one such as error.html or down.html"


def test_all_faults_are_said_at_once_each_in_its_file(tmp_path: Path) -> None:
    files = {
        "error.html": "{{ a }}",
        "down.html": "<p>\n{% include '_part.html' %}",
        "_part.html": "\n\n\n{{ b }}",
        "_unused.html": "{% bad %}",
        "gone.html": "{% block a %}",
    }
    assert sorted(faults(tmp_path, files)) == [
        "_part.html:4: 'b' is undefined",
        "_unused.html:1: Encountered unknown tag 'bad'.",
        "error.html:1: 'a' is undefined",
        "gone.html:1: Unexpected end of template. Jinja was looking for the following tags: 'endblock'. "
        "The innermost block that needs to be closed is 'block'.",
    ]


def test_folder_that_is_gone_or_closed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(f"{MEMBERS}pages: {{templates: '{write(tmp_path / '.', {'error.html': 'x'})}'}}", {})
    assert error_pages(config)
    (tmp_path / "down.html").symlink_to("away.html")
    with pytest.raises(ConfigError, match=r"down\.html cannot be read: No such file or directory"):
        error_pages(config)
    (tmp_path / "down.html").unlink()

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(ConfigError, match=r"error\.html cannot be read: Permission denied"):
            error_pages(config)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        error_pages(config)


def test_too_many_templates_or_too_much_of_them_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "x" * (LARGEST - 100)
    files = {f"error.{a}{b}.html": f"{large}{{{{ situation }}}}{a}{b}" for a in "abc" for b in "abc"}
    (fault,) = faults(tmp_path, files)
    assert fault == f"{tmp_path} makes pages of more than 8 MiB in total"
    monkeypatch.setattr("fedproxy.web.error_pages._MOST_FILES", 8)
    (fault,) = faults(tmp_path, {})
    assert fault == f"{tmp_path} has 9 templates, expected at most 8"
