"""The edge's own log, kept instead of written."""

from __future__ import annotations

from typing import Any, cast

from fedproxy.event import Event, EventName
from fedproxy.observe.events import Events


class Heard(Events):
    """events: all so far; said: the messages of those that are not about workers that start, as all do."""

    def __init__(self) -> None:
        super().__init__(cast(Any, self))
        self.events: list[Event] = []

    @property
    def dropped(self) -> int:
        return 0

    @property
    def said(self) -> list[str]:
        return [event.message for event in self.events if event.name is not EventName.WORKER_START]

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def named(self, name: EventName) -> list[Event]:
        return [event for event in self.events if event.name is name]
