"""The destination of a data plane's access log: standard output, a file, or a given callable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fedproxy.errors import ConfigError, Fault
from fedproxy.observe.access_log import AccessLog
from fedproxy.observe.output import Output, open_file

if TYPE_CHECKING:
    from fedproxy.config.model import Config


_LAST_LINES = 30.0  # seconds for the last lines of an abandoned log, in the background ...
_AT_THE_END = 1.0  # ... or at the end of the process


def check_log(config: Config) -> None:
    """Raises ConfigError if the file of the access log cannot be opened; creates it if needed."""
    file = _file_of(config)
    if file is not None:
        os.close(_open(file))


def _file_of(config: Config) -> Path | None:
    file = config.access_log_file
    return None if config.access_log == "off" or file == "stdout" else Path(file)


def _open(file: Path) -> int:
    try:
        return open_file(file)
    except OSError as error:
        message = f"{file} cannot be opened: {error.strerror}, expected a file that can be written, or stdout"
        raise ConfigError([Fault("access_log_file", message)]) from error


class Log:
    """One data plane's access log. `given`, if set, takes the lines instead of the config's target."""

    def __init__(self, given: Callable[[str], None] | None = None) -> None:
        self._given = given
        self._form: Literal["json", "combined", "off"] = "off"
        self._file: Path | None = None
        self._log: AccessLog | None = None
        self._output: Output | None = None
        self._left: list[Output] = []  # abandoned ones that still have lines to write
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """The lines lost so far because a reader was too slow or gone, or a disk was full."""
        for output in self._left[:]:
            if not output.pending:
                self._left.remove(output)
                self._dropped += output.dropped
        return self._dropped + sum(each.dropped for each in (*self._left, self._output) if each is not None)

    @contextmanager
    def prepare(self, config: Config) -> Iterator[Callable[[], AccessLog | None]]:
        """Opens the config's target and yields the log, which takes effect once the rest is in force.

        Raises ConfigError. If the block raises, nothing has changed.
        """
        form, file = config.access_log, _file_of(config)
        output = self._output
        if form == "off" or self._given is not None:
            output = None
        elif output is None or file != self._file:
            output = Output() if file is None else Output(_open(file), owned=True)
        try:
            yield lambda: self._use(form, file, output)
        except BaseException:
            if output is not None and output is not self._output:
                output.close()
            raise

    def _use(
        self, form: Literal["json", "combined", "off"], file: Path | None, output: Output | None
    ) -> AccessLog | None:
        if (form, output) != (self._form, self._output):
            if self._log is not None:
                self._log.flush()
            if output is not self._output:
                self._leave()
            self._form, self._output = form, output
            write = output or self._write_lines
            loop = asyncio.get_running_loop()
            self._log = AccessLog(write, form, loop.call_soon) if form != "off" else None
        self._file = file
        return self._log

    def _write_lines(self, text: str) -> None:
        if self._given is not None:
            for line in text.splitlines():
                self._given(line)

    def reopen(self) -> None:
        """Reopens the file, if it is one. Raises ConfigError, and then goes on with the old one."""
        if self._output is not None and self._log is not None and self._file is not None:
            output = Output(_open(self._file), owned=True)
            self._log.flush()
            self._leave()
            self._output = output
            self._log.write = output

    def close(self) -> None:
        """Writes the rest in the background."""
        if self._log is not None:
            self._log.flush()
            self._log = None
        self._leave()

    def _leave(self) -> None:
        if self._output is not None:
            self._output.close(_LAST_LINES)
            self._left.append(self._output)
            self._output = None

    async def finish(self) -> None:
        """Closes it, and returns once the last lines are written, or dropped after a second."""
        self.close()
        loop = asyncio.get_running_loop()
        by = loop.time() + _AT_THE_END
        for output in self._left:
            while output.pending:
                if loop.time() >= by:
                    output.give_up()
                await asyncio.sleep(0.01)
