"""What a request may have besides: filters and an observer. Most have neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.errors import MemberError
    from fedproxy.http.response import Field
    from fedproxy.proxy.ports import Filter, Observer, Sink


class Extras:
    """Filters, an observer, and what these say of the request.

    sink: where the response goes first. judged: a filter tells the breaker how the request ended; its status
    does not. outcome: how a launch ended, for the record. holds: a filter holds what the member has said, and
    a failure waits for that (`failure`). fields: what an answer of the edge's own says besides.
    """

    __slots__ = ("failure", "fields", "filters", "holds", "judged", "observer", "outcome", "sink")

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.filters: tuple[Filter, ...] = ()
        self.observer: Observer | None = None
        self.judged = False
        self.outcome: str | None = None
        self.holds = False
        self.failure: MemberError | None = None
        self.fields: tuple[Field, ...] = ()

    def step_in(self, passed: Filter) -> None:
        """The filter sees what follows again, where it was before `pass_by`."""
        if self.sink is passed.sink:
            self.sink = passed
        for each in self.filters:
            if each is not passed and each.sink is passed.sink:
                each.sink = passed

    def pass_by(self, passed: Filter) -> None:
        """The filter has seen enough of the response: what follows goes past it."""
        if self.sink is passed:
            self.sink = passed.sink
        for each in self.filters:
            if each.sink is passed:
                each.sink = passed.sink
