"""What one data plane learns from launches is passed on to all the others of this edge."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from fedproxy.control.messages import BuildBegun, LaunchesTaught, LaunchSeen
from fedproxy.decide.knowledge import Knowledge, Seen


class Learning:
    """Passes on what each data plane learns of launches.

    knowledge: all of it. changed: whether it changed since it was last stored. on_seen: called with each
    launch that has ended.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.knowledge = Knowledge()
        self.changed = False
        self.on_seen: Callable[[Seen], None] = lambda seen: None
        self._wall = wall
        self._planes: dict[Hashable, Callable[[BuildBegun | LaunchSeen], None]] = {}

    def join(
        self,
        who: Hashable,
        send: Callable[[BuildBegun | LaunchSeen], None],
        teach: Callable[[LaunchesTaught], None],
    ) -> None:
        """Another data plane. send: tells it what happens from now on. teach: is called at once with all that
        is known, if that is anything; it is not said again."""
        self._planes[who] = send
        if self.knowledge.members:
            teach(LaunchesTaught(self.knowledge.dump()))

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
            self.on_seen(fact.seen)
            self.changed = True
        for other, send in self._planes.items():
            if other is not who:
                send(fact)
