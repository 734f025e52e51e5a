"""The access log: one line for each finished request, as JSON or in the combined format of Apache and nginx.

Lines are gathered and written once per turn of the loop. What visitors send reaches the log only in printable
ASCII: in JSON everything else is `\\u00XX`, in the combined format `\\xXX`, so that no line can be forged.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from fedproxy.record import Record

MASK: Final = "***"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MILLISECONDS: Final = tuple(f".{millisecond:03d}Z" for millisecond in range(1000))
_NULL: Final = "null"
_KEPT: Final = 2048
_LONGEST_KEPT: Final = 512


class AccessLog:
    """Turns records into lines and hands them to `write`, each with its line feed, once per turn of the loop.

    `schedule` runs a function soon (`loop.call_soon`); `flush` may be called at any time. `write` may be
    replaced.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        form: Literal["json", "combined"],
        schedule: Callable[[Callable[[], None]], object],
    ) -> None:
        self.write = write
        self._schedule = schedule
        self._line = JsonLines() if form == "json" else CombinedLines()
        self._lines: list[str] = []

    def __call__(self, record: Record) -> None:
        """Adds one request."""
        lines = self._lines
        if not lines:
            self._schedule(self.flush)
        lines.append(self._line(record))

    def flush(self) -> None:
        """Writes what was gathered."""
        if self._lines:
            lines, self._lines = self._lines, []
            self.write("".join(lines))


class _Written(dict[str, str]):
    """Escaped text by its original: what repeats, as most user agents and targets do, is escaped once."""

    def __init__(self, write: Callable[[str], str]) -> None:
        super().__init__()
        self._write = write

    def __missing__(self, text: str) -> str:
        written = self._write(mask_target(text))
        if len(text) <= _LONGEST_KEPT:
            if len(self) >= _KEPT:
                self.clear()
            self[text] = written
        return written


class JsonLines:
    """One JSON object a line, its keys the contract's; `time` is ISO 8601 in UTC with milliseconds."""

    def __init__(self) -> None:
        self._second = -1
        self._stamp = ""
        self._targets = _Written(quote)
        self._texts = _Written(quote)

    def __call__(self, record: Record) -> str:
        """The line, including its line feed."""
        second, millisecond = divmod(int(record.time * 1000), 1000)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        texts = self._texts
        ttfb, member, affinity, launch = record.ttfb, record.member, record.affinity, record.launch
        # Formatted by hand: half the cost of json.dumps, and this runs for every request. Only strings are
        # put together, which is what mypyc compiles well.
        stamp, within = self._stamp, _MILLISECONDS[millisecond]
        request_id, client = quote(record.request_id), quote(record.client)
        method, host = texts[record.method], texts[record.host]
        target, protocol = self._targets[record.target], texts[record.protocol]
        status, received, sent = str(record.status), str(record.bytes_in), str(record.bytes_out)
        duration, first = _seconds(record.duration), _NULL if ttfb is None else _seconds(ttfb)
        name, attempts = _NULL if member is None else texts[member], str(record.attempts)
        source, termination = _NULL if affinity is None else texts[affinity], texts[record.termination]
        outcome = _NULL if launch is None else texts[launch]
        agent, referer = texts[record.user_agent], texts[record.referer]
        return (
            f'{{"time":"{stamp}{within}","request_id":{request_id},"client":{client},'
            f'"method":{method},"host":{host},"target":{target},"protocol":{protocol},'
            f'"status":{status},"bytes_in":{received},"bytes_out":{sent},'
            f'"duration":{duration},"ttfb":{first},"member":{name},"attempts":{attempts},'
            f'"affinity":{source},"termination":{termination},"launch":{outcome},'
            f'"user_agent":{agent},"referer":{referer}}}\n'
        )


def _seconds(duration: float) -> str:
    """With six decimal places."""
    whole, rest = divmod(int(duration * 1000000.0 + 0.5), 1000000)
    return str(whole) + "." + str(rest + 1000000)[1:]


class CombinedLines:
    """Apache's `combined` format: client, time in UTC, request line, status, bytes, referer, user agent."""

    def __init__(self) -> None:
        self._second = -1
        self._stamp = ""
        self._targets = _Written(_escape)
        self._texts = _Written(_escape)

    def __call__(self, record: Record) -> str:
        """The line, including its line feed."""
        second = int(record.time)
        if second != self._second:
            self._second = second
            at = time.gmtime(second)
            # Not strftime's %b: it depends on the locale.
            self._stamp = (
                f"{at.tm_mday:02d}/{_MONTHS[at.tm_mon - 1]}/{time.strftime('%Y:%H:%M:%S', at)} +0000"
            )
        texts = self._texts
        request = "-"
        if record.method:
            request = f"{texts[record.method]} {self._targets[record.target]} {record.protocol}"
        return (
            f'{texts[record.client] or "-"} - - [{self._stamp}] "{request}" '
            f"{record.status} {record.bytes_out}"
            f' "{texts[record.referer] or "-"}" "{texts[record.user_agent] or "-"}"\n'
        )


_UNSAFE: Final = re.compile(r'[^ -~]|["\\]')


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02X}", text)


_ENCODED: Final = r"%(?:25)*"


def _spelled(text: str) -> str:
    """A pattern for `text`, in which each character may be percent-encoded, once or several times over.

    For use with IGNORECASE, also for a letter that is encoded.
    """
    return "".join(
        f"(?:{re.escape(char)}|{_ENCODED}(?:{ord(char.lower()):02x}|{ord(char.upper()):02x}))"
        for char in text
    )


# JupyterHub (jupyterhub/log.py, where the last is `_xsrf`) and Jupyter Server (jupyter_server/log.py) scrub
# parameters with one of these in their names from their own logs.
_WORDS: Final = ("token", "auth", "key", "code", "state", "xsrf")
_EQUALS: Final = _spelled("=")
_SLASH: Final = _spelled("/")
# A login page's `next=` carries a whole URL, so a name may follow an encoded delimiter and precede an encoded
# `=`. Everything up to the next plain delimiter is masked then: too much rather than too little. A name is
# passed over as a whole, also if it has no value, so that a long one takes no more than linear time.
_NAMED: Final = re.compile(
    rf"((?=[%{''.join(sorted({word[0] for word in _WORDS}))}])(?:{'|'.join(map(_spelled, _WORDS))})"
    rf"(?:[^?&#=%]|%(?!(?:25)*(?:3f|26|23|3d)))*+)(?:({_EQUALS})[^&#]+)?",
    re.IGNORECASE | re.ASCII,
)
_ENCODED_LETTER: Final = re.compile(rf"{_ENCODED}(?:[46][1-9a-f]|[57][0-9a])", re.IGNORECASE)
# JupyterHub's API has these in the path: /hub/api/authorizations/token/TOKEN and .../cookie/NAME/VALUE.
_IN_PATH: Final = re.compile(
    rf"(authorizations{_SLASH}(?:token|cookie{_SLASH}(?:(?!{_SLASH})[^?&#])++){_SLASH})[^?&#]+", re.IGNORECASE
)


def mask_target(target: str) -> str:
    """The target or URL without values that JupyterHub and Jupyter Server keep out of their logs.

    These are the values of parameters with `token`, `auth`, `key`, `code`, `state` or `xsrf` in their names,
    however spelled, and the credentials in paths of JupyterHub's API.
    """
    if "=" not in target and "%" not in target and "authorizations" not in target:
        return target
    if "%" not in target or _ENCODED_LETTER.search(target) is None:
        small = target.lower()
        # Written out, as most targets with a query get here: a loop or a pattern takes several times as long.
        if (
            "token" not in small
            and "key" not in small
            and "code" not in small
            and "state" not in small
            and "auth" not in small
            and "xsrf" not in small
        ):
            return target
    masked = _NAMED.sub(_masked, target)
    return _IN_PATH.sub(rf"\1{MASK}", masked) if "authorizations" in masked else masked


def _masked(found: re.Match[str]) -> str:
    return found[0] if found[2] is None else f"{found[1]}{found[2]}{MASK}"
