"""What a request may have besides: filters and an observer. Most have neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.proxy.ports import Filter, Observer, Sink


class Extras:
    """Filters, an observer, and what these say of the request.

    sink: where the response goes first. judged: a filter tells the breaker how the request ended; its status
    does not. outcome: how a launch ended, for the record.
    """

    __slots__ = ("filters", "judged", "observer", "outcome", "sink")

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.filters: tuple[Filter, ...] = ()
        self.observer: Observer | None = None
        self.judged = False
        self.outcome: str | None = None

    def pass_by(self, passed: Filter) -> None:
        """The filter has seen enough of the response: what follows goes past it."""
        if self.sink is passed:
            self.sink = passed.sink
        for each in self.filters:
            if each.sink is passed:
                each.sink = passed.sink
