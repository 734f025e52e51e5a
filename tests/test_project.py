"""What the project says about itself is true: its documents, its image, its example configs."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import Counter
from importlib import metadata
from pathlib import Path

import click
import pytest

from fedproxy import __version__
from fedproxy.cli import main
from fedproxy.cli import reference as commands
from fedproxy.config.load import load, parse
from fedproxy.errors import ExchangeError, MemberError, reasons_of
from fedproxy.observe.metrics import REASONS
from fedproxy.web import reference as api

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
COMMANDS = set(main.commands)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _fences(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def _prose(text: str) -> str:
    return re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def _code(text: str) -> str:
    """All that is set as code, in blocks and in lines."""
    return "\n".join([*_fences(text), *re.findall(r"`([^`\n]+)`", _prose(text))])


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _instruction(name: str) -> list[str]:
    """The one instruction of that name in the Dockerfile, in its exec form."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    (found,) = re.findall(rf"^{name} [^\[]*(\[.*\])$", text, re.MULTILINE)
    words: list[str] = json.loads(found)
    return words


def test_readme_begins_with_the_two_commands() -> None:
    first, *_ = _fences((ROOT / "README.md").read_text())
    assert [line.split("  ")[0] for line in first.splitlines()] == ["make demo", "make test"]


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for path in DOCUMENTS for name in re.findall(r"\bmake ([a-z-]+)", _code(path.read_text()))}
    assert {"demo", "test", "bench", "docs"} <= named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_command_in_a_document_exists(path: Path) -> None:
    named = set(re.findall(r"(?:^|[\s/])fedproxy ([a-z]+)", _code(path.read_text()), re.MULTILINE))
    assert named <= COMMANDS


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_every_option_in_a_command_line_exists(path: Path) -> None:
    for line in "\n".join(_fences(path.read_text())).replace("\\\n", " ").splitlines():
        for command, rest in re.findall(r"(?:^|[\s/])fedproxy ([a-z]+)\b([^|&;>#]*)", line):
            found = main.commands[command]
            inner = found.commands.values() if isinstance(found, click.Group) else [found]
            options = {name for one in inner for each in one.params for name in each.opts}
            for option in re.findall(r"(?<=\s)(--?[a-z][a-z-]*)", rest):
                assert option in options | {"--help", "-h"}, line


def test_every_termination_of_an_error_is_documented_twice() -> None:
    def codes(kind: type[ExchangeError]) -> set[str]:
        return {kind.termination}.union(*map(codes, kind.__subclasses__()))

    for path in (ROOT / "README.md", ROOT / "docs" / "reference" / "termination.md"):
        rows = re.findall(r"^\| (`..`.*?) \|", path.read_text(), re.MULTILINE)
        listed = {code for row in rows for code in re.findall(r"`(..)`", row)}
        assert codes(ExchangeError) | {"--"} <= listed, path.name


def test_every_reason_of_an_error_and_of_a_refusal_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    _, errors, refusals = re.split(
        r"^Of (?:failed|what)", text.partition("\n## Reasons\n")[2], flags=re.MULTILINE
    )
    for part, reasons in (errors, reasons_of(MemberError)), (refusals.partition("\n## ")[0], REASONS):
        rows = re.findall(r"^\| (`.*?`) \| ", part, re.MULTILINE)
        assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == reasons - {"member"}


def test_reference_is_made_from_the_source() -> None:
    reference = ROOT / "docs" / "reference"
    assert (reference / "commands.md").read_text() == commands.render(), "make reference"
    assert (reference / "api.md").read_text() == api.render(), "make reference"


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = set()
    for path in (ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"):
        for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
            listed.add((path.parent / link).resolve())
    own = {ROOT / "docs" / "README.md", ROOT / "docs" / "index.md"}
    assert {_name(path) for path in DOCUMENTS if path not in own and path not in listed} == set()


def test_readme_names_every_command() -> None:
    code = _code((ROOT / "README.md").read_text()).replace("make demo", "fedproxy demo")
    assert {name for name in COMMANDS if f"fedproxy {name}" not in code} == set()


def test_versions_agree() -> None:
    assert metadata.version("fedproxy") == __version__
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_links_of_a_document_lead_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(path.read_text())):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/*.yaml")), ids=_name)
def test_example_config_is_valid(path: Path) -> None:
    assert load(path, {"FEDPROXY_ADMIN_TOKEN": "token", "FEDPROXY_COOKIE_SECRET": "secret"}).members


def test_config_in_the_readme_is_valid() -> None:
    (config,) = [text for text in _fences((ROOT / "README.md").read_text()) if text.startswith("members:")]
    assert parse(config, {}).members


def test_image_runs_a_command_that_exists() -> None:
    (program,) = _instruction("ENTRYPOINT")
    command, *arguments = _instruction("CMD")
    assert program in PROJECT["scripts"]
    # Without a config of its own: that of the usual place.
    assert main.commands[command].make_context(command, arguments).params["file"] is None


def test_image_is_built_from_what_its_context_has() -> None:
    copied = {
        name
        for names in re.findall(r"^COPY ((?:[\w.]+ )+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for name in names.split()
    }
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert copied == set(kept)
    assert all((ROOT / name).exists() for name in copied)


def test_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert int(user) > 0


def test_image_health_check_is_a_program() -> None:
    program, flag, source = _instruction("HEALTHCHECK")
    assert (program, flag) == ("python", "-c")
    compile(source, "HEALTHCHECK", "exec")
    assert "/health/live" in source


def test_no_two_classes_have_the_same_name() -> None:
    names = Counter(
        node.name
        for path in ROOT.glob("fedproxy/**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert not {name for name, count in names.items() if count > 1}
