"""What launches teach one data plane, all of this edge should know: each tells the others."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from fedproxy.control.messages import BuildBegun, LaunchesTaught, LaunchSeen
from fedproxy.decide.knowledge import Knowledge


class Learning:
    """Passes on what each data plane learns of launches.

    knowledge: all of it. changed: since the store was given it.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.knowledge = Knowledge()
        self.changed = False
        self._wall = wall
        self._planes: dict[Hashable, Callable[[BuildBegun | LaunchSeen | LaunchesTaught], None]] = {}

    def join(self, who: Hashable, send: Callable[[BuildBegun | LaunchSeen | LaunchesTaught], None]) -> None:
        """Another data plane, which is told everything."""
        self._planes[who] = send
        if self.knowledge.members:
            send(LaunchesTaught(self.knowledge.dump()))

    def leave(self, who: Hashable) -> None:
        """It is gone."""
        self._planes.pop(who, None)

    def tell(self, who: Hashable, fact: BuildBegun | LaunchSeen) -> None:
        """What one of them has learned."""
        now = self._wall()
        if isinstance(fact, BuildBegun):
            self.knowledge.begun(fact.image, fact.name, now)
        else:
            self.knowledge.learn(fact.seen, now)
            self.changed = True
        for other, send in self._planes.items():
            if other is not who:
                send(fact)
