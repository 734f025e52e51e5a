"""Which filters and observers a request has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fedproxy.proxy.explaining import may_ask
from fedproxy.proxy.extras import Extras
from fedproxy.proxy.filters.explain import Explainer
from fedproxy.proxy.filters.launch import LaunchFilter
from fedproxy.proxy.tracing import Notes, is_flagged
from fedproxy.wire.events import asked_for

if TYPE_CHECKING:
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.ports import Filter, Sink


def _launch(exchange: Exchange) -> Filter | None:
    if not (exchange.line.launch and asked_for(exchange.block.raw)):
        return None
    exchange.is_launch = True
    return LaunchFilter(exchange, extras_of(exchange))


def _explain(exchange: Exchange) -> Filter | None:
    block = exchange.block
    if not (block.explained and may_ask(exchange.context, block, exchange.origin.client)):
        return None
    return Explainer(exchange, extras_of(exchange))


MAKERS: Final[list[Callable[[Exchange], Filter | None]]] = [_launch, _explain]
"""Each makes a filter for the requests that need it. The first sees what the member sends, the last what the
visitor gets. A request that takes the short path (`RoutedRequest.ordinary`) has none."""


def compose(exchange: Exchange) -> None:
    """Gives a request its filters and its observer."""
    filters = tuple([made for make in MAKERS if (made := make(exchange)) is not None])
    if filters:
        extras = extras_of(exchange)
        extras.filters = filters
        extras.sink = filters[0]
        sinks: tuple[Sink, ...] = (*filters[1:], exchange)
        for each, sink in zip(filters, sinks, strict=True):
            each.sink = sink
    traced = exchange.context.tracer is not None or exchange.block.traceparent is not None
    if traced and not exchange.line.own:
        follow(exchange)


def follow(exchange: Exchange) -> None:
    """Gives a request an observer if its trace is sampled."""
    tracer, given = exchange.context.tracer, exchange.block.traceparent
    if tracer is not None:
        sampled = tracer.samples(given, exchange.visitor.trusted)
    else:
        # Others make its spans, and the metrics may name it as an example.
        sampled = given is not None and is_flagged(given)
    if sampled:
        extras_of(exchange).observer = Notes(exchange)


def extras_of(exchange: Exchange) -> Extras:
    """The `Extras` of a request, made if it has none yet."""
    if exchange.extras is None:
        exchange.extras = Extras(exchange)
    return exchange.extras
