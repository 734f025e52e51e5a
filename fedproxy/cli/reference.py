"""`docs/reference/commands.md`, from the commands: each with its arguments, options and defaults."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click

from fedproxy.cli import main

_INTRODUCTION = """\
# Commands

Every command of `fedproxy` with its options, as `fedproxy COMMAND --help` prints them.
[Operating](../operating.md#commands) says what the commands for operators do to a running edge.
"""


def render() -> str:
    """The whole reference as Markdown."""
    group = click.Context(main, info_name="fedproxy")
    parts = [_INTRODUCTION, _index(), "## Common to all\n", *_epilog(), _options(main, group)]
    for name in sorted(main.commands):
        command = main.commands[name]
        context = click.Context(command, info_name=name, parent=group)
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        parts += [f"## {name}\n", f"```text\n{usage}\n```\n", _prose(command.help or "")]
        options = _options(command, context)
        if options:
            parts.append(options)
    return "\n".join(parts)


def _index() -> str:
    rows = "\n".join(
        f"| [`{name}`](#{name}) | {_cell(main.commands[name].get_short_help_str(limit=200))} |"
        for name in sorted(main.commands)
    )
    return f"| command | does |\n| --- | --- |\n{rows}\n"


def _epilog() -> Iterator[str]:
    """What is below the commands in the help: the environment, as it is laid out, and the exit status."""
    for paragraph in inspect.cleandoc(main.epilog or "").split("\b\n"):
        if paragraph.strip():
            yield f"```text\n{paragraph.strip()}\n```\n"


def _prose(text: str) -> str:
    """A help text as Markdown: what is laid out by hand remains so."""
    made = []
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(text)):
        if paragraph.startswith("\b\n"):
            made.append(f"```text\n{paragraph.removeprefix(chr(8)).strip(chr(10))}\n```\n")
        else:
            made.append(f"{_text(' '.join(paragraph.split()))}\n")
    return "\n".join(made)


def _options(command: click.Command, context: click.Context) -> str:
    """A table of the options, without that for help; empty if there is none."""
    records = [
        (names, text)
        for parameter in command.get_params(context)
        for names, text in [parameter.get_help_record(context) or ("", "")]
        if text and not names.endswith("--help")
    ]
    if not records:
        return ""
    rows = "\n".join(
        f"| `{_cell(names)}` | {_cell(_text(' '.join(text.split())))} |" for names, text in records
    )
    return f"| option | |\n| --- | --- |\n{rows}\n"


def _text(text: str) -> str:
    """Text in which nothing is markup by accident, unless it has code and so was written as markup."""
    return re.sub(r"([<*_])", r"\\\1", text) if "`" not in text else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":  # pragma: no cover
    sys.stdout.write(render())
