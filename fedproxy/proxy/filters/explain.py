"""A response that says why its request went where it went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedproxy.proxy.explaining import COUNTED, Explanation, explain, field
from fedproxy.proxy.filters.passing import PassThrough

if TYPE_CHECKING:
    from fedproxy.decide.federation import Lease
    from fedproxy.http.response import ResponseHead
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.extras import Extras


class Explainer(PassThrough):
    """Adds the explanation to the response, with what became of it."""

    __slots__ = ("_exchange", "_extras", "_found")

    def __init__(self, exchange: Exchange, extras: Extras) -> None:
        self._exchange = exchange
        self._extras = extras
        self._found: Explanation = {}

    def before(self) -> bool:
        """Before anything is chosen, so that nothing of this request counts."""
        exchange = self._exchange
        self._found = explain(exchange.context, exchange.line, exchange.block, exchange.origin.client)
        self._extras.fields = (field(self._found),)
        return False

    def begin(self, lease: Lease) -> None:
        source = COUNTED.get(self._exchange.source, self._exchange.source)
        name = lease.member.name
        self._found["member"], self._found["source"] = name, source.value
        others = self._found.get("next")
        if isinstance(others, list):
            self._found["next"] = [each for each in others if each != name]
        self._found["asked"] = [each.lease.member.name for each in self._exchange.attempts]
        self._extras.fields = (field(self._found),)

    def head(self, head: ResponseHead, body: bytes, done: bool) -> None:
        self.sink.head(head.with_more(field(self._found)), body, done)
        self._extras.pass_by(self)
