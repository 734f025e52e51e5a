"""Which filters and observers a request has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedproxy.proxy.extras import Extras
from fedproxy.proxy.filters.launch import LaunchFilter
from fedproxy.proxy.tracing import Notes, is_flagged
from fedproxy.wire.events import asked_for

if TYPE_CHECKING:
    from fedproxy.proxy.exchange import Exchange
    from fedproxy.proxy.ports import Filter, Sink


def compose(exchange: Exchange) -> None:
    """Gives a request what it needs beside the relay; an ordinary one needs nothing."""
    if exchange.line.launch and asked_for(exchange.block.raw):
        extras = extras_of(exchange)
        exchange.is_launch = True
        through(exchange, LaunchFilter(exchange, extras))
    if exchange.context.tracer is not None or exchange.block.traceparent is not None:
        follow(exchange)


def through(exchange: Exchange, *filters: Filter) -> None:
    """Sends the response through these, in their order."""
    extras = extras_of(exchange)
    extras.filters = filters
    extras.sink = filters[0]
    sinks: tuple[Sink, ...] = (*filters[1:], exchange)
    for each, sink in zip(filters, sinks, strict=True):
        each.sink = sink


def follow(exchange: Exchange) -> None:
    """Has notes taken of a request, if it is of a sampled trace."""
    tracer, given = exchange.context.tracer, exchange.block.traceparent
    if tracer is not None:
        sampled = tracer.samples(given, exchange.visitor.trusted)
    else:
        # Others follow the trace, and the metrics may point to it.
        sampled = given is not None and is_flagged(given)
    if sampled:
        extras_of(exchange).observer = Notes(exchange)


def extras_of(exchange: Exchange) -> Extras:
    """What it has besides, which is made if there is nothing yet."""
    if exchange.extras is None:
        exchange.extras = Extras(exchange)
    return exchange.extras
