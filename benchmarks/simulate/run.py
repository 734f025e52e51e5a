"""One policy with the launches of one seed: the events, in the order of time.

    asked ─► a member is chosen ─► it refuses, or fails at once ─► the next one, up to `edge.attempts`
                               └─► (its image is built) ─► the pod starts ─► ready ─► the session ends

An event is a tuple on a heap: time, a number that makes the order certain, what to call, and with what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from math import fsum
from typing import Any, Final

from benchmarks.simulate.chance import stream
from benchmarks.simulate.hub import Build, Hub, Node
from benchmarks.simulate.measures import Fate, Return, Tally, usual_share
from benchmarks.simulate.policies import Chosen, Edge, edge
from benchmarks.simulate.scenario import FailureSettings, Scenario
from benchmarks.simulate.visitors import HOUR, Asked, Launches
from fedproxy.decide.breaker import Outcome
from fedproxy.decide.federation import Lease, Refusal
from fedproxy.decide.knowledge import Seen
from fedproxy.decide.launch import End
from fedproxy.decide.member import Member

_SUCCESS: Final = Outcome.SUCCESS
_FAILURE: Final = Outcome.FAILURE
_IGNORED: Final = Outcome.IGNORED
_TICK: Final = 2000  # launches between two reports of progress


class Underway:
    """A launch that was asked for and has not ended.

    asked: when. hub: the member that it is at since `asked_here`, with `lease`. servable: some member could
    serve it; None if it does not count. stays: the visitor will come again. found: the image was there; None
    if the member did not say. built: when the image was there.
    """

    __slots__ = (
        *("asked", "asked_here", "blame", "built", "client", "edge", "found", "hub", "image", "lease"),
        *("luck", "node", "number", "servable", "stays", "tried", "visitor"),
    )

    asked: float
    asked_here: float
    blame: Outcome
    built: float | None
    client: bytes
    edge: Edge
    found: bool | None
    hub: Hub
    image: int
    lease: Lease
    luck: Asked
    node: Node
    number: int
    servable: bool | None
    stays: bool
    tried: tuple[Member, ...]
    visitor: int


class Interrupted(Exception):
    """Somebody wants to see what there is so far."""


class Run:
    """One policy in one world. `tally`: what was measured so far."""

    def __init__(self, scenario: Scenario, launches: Launches, chosen: Chosen, seed: int) -> None:
        self.scenario = scenario
        self.launches = launches
        settings = scenario.edge
        self.hubs = [
            Hub(number, name, each, settings.rise, settings.fall, settings.headroom)
            for number, (name, each) in enumerate(scenario.members.items())
        ]
        self.by_name = {hub.name: hub for hub in self.hubs}
        self.edges = [
            edge(chosen, scenario, self.hubs, stream(seed, f"edge {number}"), self._truth)
            for number in range(settings.count)
        ]
        self.tally = Tally([hub.weight for hub in self.hubs])
        self.under_way = 0
        self.now = 0.0
        self.begin = scenario.warm_up
        self._events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._number = 0
        self._places: dict[int, int] = {}  # of visitors who will come again
        self._asked: Asked | None = None
        self._attempts = settings.attempts if chosen.failover else 1
        self._weight = fsum(hub.weight for hub in self.hubs)
        self._pods = 0
        self._returns: dict[int, Return] = {}
        # Probes are made at these seconds of each interval.
        self._phase = stream(seed, "probes").random() * settings.interval
        for each in scenario.failures:
            self._at(self.begin + each.at, self._begin_failure, each)
        if any(hub.settings.own_pods for hub in self.hubs):
            self._change_own(0.0, 0)

    def run(self, count: int, progress: Callable[[int], None] | None = None) -> None:
        """Makes so many launches that count, or as many as there are, and waits until all have ended.

        progress: called every now and then with the launches made; it may raise `Interrupted`.
        """
        begin, tally, events, ask = self.begin, self.tally, self._events, self._ask
        if progress is not None:
            self._at(HOUR, self._look, progress)
        for number, asked in enumerate(self.launches):
            at = asked[0]
            if tally.asked >= count:
                break
            while events and events[0][0] <= at:
                now, _, call, what = heappop(events)
                self.now = now
                call(now, what)
            self.now = at
            ask(at, asked, at >= begin)
            if progress is not None and not number % _TICK:
                progress(tally.asked)
        while self.under_way:
            now, _, call, what = heappop(events)
            self.now = now
            call(now, what)
        for each in self._returns.values():
            each.give_up(self.now)
        if progress is not None:
            progress(tally.asked)

    def _at(self, when: float, call: Callable[[float, Any], None], what: Any) -> None:
        self._number += 1
        heappush(self._events, (when, self._number, call, what))

    def _look(self, now: float, progress: Callable[[int], None]) -> None:
        """Launches may be far apart, with much between them."""
        progress(self.tally.asked)
        self._at(now + HOUR, self._look, progress)

    # A launch

    def _ask(self, now: float, asked: Asked, counts: bool) -> None:
        visitor, keeps, last = asked[1:4]
        self._asked = asked
        launch = Underway()
        self._number += 1
        launch.number = self._number
        launch.asked = now
        launch.visitor = visitor
        launch.stays = not last
        launch.image = asked[5]
        launch.luck = asked
        launch.client = b"10.%d.%d.%d" % (visitor >> 16 & 255, visitor >> 8 & 255, visitor & 255)
        launch.tried = ()
        launch.servable = None
        here = self.edges[int(asked[10] * len(self.edges))]
        launch.edge = here
        if now - here.rolled >= 1.0:
            here.federation.roll(now)
            here.rolled = now
            self._tell_rooms(now, here)
        place = self._places.get(visitor)
        if counts:
            tally = self.tally
            tally.asked += 1
            if place is None:
                tally.visitors += 1
            launch.servable = False
            if not self.launches.repositories.fails[asked[4]]:
                for hub in self.hubs:
                    if hub.pods < hub.room and hub.reachable and hub.weight and hub.failing < 1.0:
                        launch.servable = True
                        break
        self.under_way += 1
        self._send(now, launch, here.members[place] if keeps and place is not None else None)

    def _send(self, now: float, launch: Underway, pinned: Member | None) -> None:
        """Chooses a member, and asks it."""
        asked, here, client = launch.luck, launch.edge, launch.client
        available = -1
        if not launch.tried and launch.servable is not None:
            available = 0
            for at, member in enumerate(here.members):
                if member.weight and member.available(now, True, client):
                    available |= 1 << at
        image = self.launches.digest(asked[5]) if here.learns else None
        key = self.launches.key(asked[4])
        lease = here.acquire(key, pinned, launch.tried, now, True, client, image)
        if isinstance(lease, Refusal):
            self._end(launch, Fate.REFUSED)
            return
        launch.lease = lease
        launch.hub = hub = self.by_name[lease.member.name]
        launch.asked_here = now
        launch.found = launch.built = None
        if available >= 0:
            if here.oracle is not None:
                available = here.oracle.able
            self._note_choice(now, available, hub)
        if not hub.reachable:
            here.federation.settle(lease, _FAILURE, now, client)
            self._teach(now, launch, End.LOST, failed=True)
            self._elsewhere(now, launch)
        elif asked[9] < hub.early:
            launch.blame = _FAILURE
            self._at(now + self.scenario.edge.answer, self._refused, launch)
        elif hub.pods >= hub.room:
            launch.blame = _IGNORED
            # That an image is there is said first.
            launch.found = launch.image in hub.images or None
            self._at(now + self.scenario.edge.answer, self._refused, launch)
        else:
            self._commit(now, launch, hub)

    def _refused(self, now: float, launch: Underway) -> None:
        """The member has answered that it cannot serve the launch."""
        federation, lease = launch.edge.federation, launch.lease
        federation.judge(lease, launch.blame, now, launch.client)
        federation.settle(lease, _IGNORED, now, launch.client)
        self._teach(now, launch, End.FAILED, failed=True)
        self._elsewhere(now, launch)

    def _elsewhere(self, now: float, launch: Underway) -> None:
        launch.tried += (launch.lease.member,)
        if len(launch.tried) < self._attempts:
            self._send(now, launch, None)
        else:
            self._end(launch, Fate.REFUSED)

    def _commit(self, now: float, launch: Underway, hub: Hub) -> None:
        """The visitor has seen an event of this member, and its cookie: the launch stays here."""
        visitor = launch.visitor
        place = self._places.get(visitor)
        if place is not None and place != hub.number and launch.servable is not None:
            self.tally.moved += 1
        if launch.stays:
            self._places[visitor] = hub.number
        elif place is not None:
            del self._places[visitor]
        image = launch.image
        launch.found = image in hub.images
        if launch.found:
            launch.built = now
            self._start(now, launch)
            return
        build = hub.builds.get(image)
        if build is None:
            asked = launch.luck
            seconds = hub.build_seconds(self.launches.repositories.build[asked[4]])
            build = hub.builds[image] = Build(image, seconds)
            if launch.servable is not None:
                self.tally.builds += 1
            if hub.building < hub.settings.build_slots:
                self._build(now, hub, build)
            else:
                hub.queue.append(build)
        build.launches.append(launch)
        hub.waiting += 1
        # As the edge does: a trial of the breaker need not wait for a build.
        launch.edge.federation.answered(launch.lease, now, launch.client)
        if launch.edge.learns:
            for each in self._told(launch.edge):
                each.federation.build_begun(self.launches.digest(image), hub.name, now)

    # Builds

    def _build(self, now: float, hub: Hub, build: Build) -> None:
        hub.building += 1
        build.ends = now + build.seconds
        self._at(build.ends, self._built, (hub, build))

    def _built(self, now: float, what: tuple[Hub, Build]) -> None:
        hub, build = what
        if hub.builds.get(build.image) is not build:
            return  # it was lost
        del hub.builds[build.image]
        hub.building -= 1
        hub.waiting -= len(build.launches)
        if hub.queue:
            self._build(now, hub, hub.queue.popleft())
        image = build.image
        repositories = self.launches.repositories
        if repositories.fails[repositories.of[image]]:
            for launch in build.launches:
                self._teach(now, launch, End.FAILED, failed=False)
                self._give_back(now, launch, _IGNORED, Fate.REPOSITORY)
            return
        hub.keep(image)
        if self.scenario.images == "replicated":
            self._at(now + self.scenario.images_delay, self._replicated, image)
        for launch in build.launches:
            launch.built = now
            if hub.pods < hub.room:
                self._start(now, launch)
            else:
                self._teach(now, launch, End.FAILED, failed=True)
                self._give_back(now, launch, _IGNORED, Fate.FULL)

    def _replicated(self, _now: float, image: int) -> None:
        for hub in self.hubs:
            if image not in hub.images:
                hub.keep(image)

    # Pods

    def _start(self, now: float, launch: Underway) -> None:
        hub, image, asked = launch.hub, launch.image, launch.luck
        if hub.settings.registry is not None:
            hub.keep(image)
        launch.node = node = hub.place(image)
        since, seconds = hub.starts_in(node, image, now, asked[7], asked[8])
        node.take(image, since)
        hub.pods += 1
        self._pods += 1
        if hub.pods >= hub.brim and not hub.probing:
            self._turn(now, hub)
        if launch.servable is not None:
            self._weigh(hub)
        hub.under_way[launch.number] = launch
        # The chance that a launch fails is that it fails at all: those that fail early are not here.
        if hub.early <= asked[9] < hub.failing:
            self._at(now + hub.fails_after, self._failed, launch)
        else:
            self._at(now + seconds, self._ready, launch)

    def _ready(self, now: float, launch: Underway) -> None:
        hub = launch.hub
        if hub.under_way.pop(launch.number, None) is None:
            return  # it was lost
        self._at(now + launch.luck[6], self._leave, (hub, launch.node))
        if launch.servable is not None:
            self.tally.waits.append(now - launch.asked)
        self._teach(now, launch, End.READY, failed=False)
        self._give_back(now, launch, _SUCCESS, Fate.READY)

    def _failed(self, now: float, launch: Underway) -> None:
        hub = launch.hub
        if hub.under_way.pop(launch.number, None) is None:
            return
        self._leave(now, (hub, launch.node))
        self._teach(now, launch, End.FAILED, failed=True)
        self._give_back(now, launch, _FAILURE, Fate.FAILED)

    def _leave(self, _now: float, what: tuple[Hub, Node]) -> None:
        """A pod ends."""
        hub, node = what
        hub.pods -= 1
        node.pods -= 1
        self._pods -= 1

    def _give_back(self, now: float, launch: Underway, blame: Outcome, fate: Fate) -> None:
        federation, lease, client = launch.edge.federation, launch.lease, launch.client
        federation.judge(lease, blame, now, client)
        federation.settle(lease, blame, now, client)
        self._end(launch, fate)

    def _end(self, launch: Underway, fate: Fate) -> None:
        self.under_way -= 1
        if launch.servable is not None:
            tally = self.tally
            tally.fates[fate] += 1
            if launch.servable:
                tally.servable += 1
                tally.ready += fate is Fate.READY

    def _teach(self, now: float, launch: Underway, end: End, *, failed: bool) -> None:
        """Tells the edge how the launch went at its member. failed: another member might have served it."""
        if not launch.edge.learns:
            return
        built = launch.built
        build = start = None
        if built is not None:
            build = None if launch.found else built - launch.asked_here
            start = now - built if end is End.READY else None
        image = self.launches.digest(launch.image)
        seen = Seen(image, launch.hub.name, launch.found, build, start, end, failed)
        for each in self._told(launch.edge):
            each.federation.learn(seen, now)

    def _told(self, edge: Edge) -> Sequence[Edge]:
        """Those who hear of what a launch teaches that edge."""
        return self.edges if self.scenario.edge.shared else (edge,)

    # What is measured besides

    def _note_choice(self, now: float, available: int, hub: Hub) -> None:
        chosen = self.tally.choices.get(available)
        if chosen is None:
            chosen = self.tally.choices[available] = [0] * len(self.hubs)
        chosen[hub.number] += 1
        if self._returns:
            for number, each in list(self._returns.items()):
                if each.note(now, number == hub.number):
                    del self._returns[number]

    def _weigh(self, hub: Hub) -> None:
        """Looks whether the member has more pods than is fair."""
        if hub.weight and hub.slots:
            over = (hub.pods - self._pods * hub.weight / self._weight) / hub.slots
            if over > self.tally.over:
                self.tally.over = over

    def _truth(self, now: float) -> list[tuple[float, int]]:
        """How long the launch that is asked for would wait at each hub, and the room for more than waits
        there.
        """
        asked = self._asked
        assert asked is not None
        build = self.launches.repositories.build[asked[4]]
        return [
            (hub.wait(asked[5], build, now, asked[7], asked[8], asked[9]), hub.room - hub.pods - hub.waiting)
            for hub in self.hubs
        ]

    # What happens to members

    def _begin_failure(self, now: float, failure: FailureSettings) -> None:
        if failure.every is not None:
            self._at(now + failure.every, self._begin_failure, failure)
        if failure.kind == "flapping":
            self._flap(now, (failure, now + failure.lasts))
            return
        self._suffer(now, failure)
        self._at(now + failure.lasts, self._end_failure, failure)

    def _flap(self, now: float, what: tuple[FailureSettings, float]) -> None:
        failure, ends = what
        if now >= ends:
            return
        period = failure.period or 120.0
        self._suffer(now, failure)
        self._at(min(now + period / 2, ends), self._end_failure, failure)
        self._at(now + period, self._flap, what)

    def _suffer(self, now: float, failure: FailureSettings) -> None:
        hub = self.by_name[failure.member]
        was_reachable = hub.reachable
        hub.suffer(failure)
        if was_reachable and not hub.reachable:
            self._crash(now, hub)
        self._turn(now, hub)

    def _end_failure(self, now: float, failure: FailureSettings) -> None:
        hub = self.by_name[failure.member]
        was_reachable = hub.reachable
        hub.recover(failure)
        if not was_reachable and hub.reachable:
            self._reweigh()
            if hub.weight and now >= self.begin:
                self._returns[hub.number] = back = Return(now, usual_share(self.tally, hub.number))
                self.tally.returns.append(back)
        self._turn(now, hub)

    def _crash(self, now: float, hub: Hub) -> None:
        """What is under way there is lost."""
        back = self._returns.pop(hub.number, None)
        if back is not None:
            back.give_up(now)
        waiting = [launch for build in hub.builds.values() for launch in build.launches]
        starting = list(hub.under_way.values())
        hub.builds.clear()
        hub.queue.clear()
        hub.under_way.clear()
        hub.building = hub.waiting = 0
        self._reweigh()
        for launch in starting:
            self._leave(now, (hub, launch.node))
        for launch in (*waiting, *starting):
            self._teach(now, launch, End.LOST, failed=True)
            self._give_back(now, launch, _FAILURE, Fate.LOST)

    def _reweigh(self) -> None:
        self._weight = fsum(hub.weight for hub in self.hubs if hub.reachable) or 1.0

    def _change_own(self, now: float, hour: int) -> None:
        """The pods of members' own communities, which come and go with the hours."""
        hours = self.scenario.visitors.hours
        # The warm-up may begin at any hour.
        busy = hours[int((now - self.begin) // HOUR) % len(hours)] / max(hours)
        for hub in self.hubs:
            if hub.settings.own_pods:
                hub.set_own(round(hub.settings.own_pods * busy))
                self._turn(now, hub)
        self._at((hour + 1) * HOUR, self._change_own, hour + 1)

    # Probes

    def _turn(self, now: float, hub: Hub) -> None:
        """A probe may find something else than the last one did."""
        if not hub.probing and not (hub.health.healthy and hub.verdict().ok):
            hub.probing = True
            interval = self.scenario.edge.interval
            rounds = (now - self._phase) // interval + 1
            self._at(self._phase + rounds * interval, self._probe, hub)

    def _tell_rooms(self, now: float, edge: Edge) -> None:
        """What the last probe said of each member's pods; what hides its quota, hides it here too."""
        if now - edge.told >= self.scenario.edge.interval:
            edge.told = now
            for hub, member in zip(self.hubs, edge.members, strict=True):
                member.room = max(0, hub.slots - hub.own - hub.pods) if hub.reachable else None

    def _probe(self, now: float, hub: Hub) -> None:
        """All edges probe at the same times, so one probe stands for theirs.

        A probe that would find what the last one did, that all is well, is not made.
        """
        verdict, health = hub.verdict(), hub.health
        if health.observe(verdict):
            for each in self.edges:
                each.members[hub.number].set_health(health.healthy, now, health.reasons)
        if verdict.ok and health.healthy:
            hub.probing = False
        else:
            settings = self.scenario.edge
            wait = settings.interval if health.healthy else settings.unhealthy_interval
            self._at(now + wait, self._probe, hub)

    def faults(self) -> list[str]:
        """What cannot be, whatever a scenario says. For tests; empty if all is well."""
        found = []
        for hub in self.hubs:
            if not 0 <= hub.pods <= hub.slots or hub.pods != sum(node.pods for node in hub.nodes):
                found.append(f"pods: {hub!r}")
            if any(node.pods > node.room or len(node.images) > node.keeps for node in hub.nodes):
                found.append(f"a node has too much: {hub!r}")
            if not 0 <= hub.building <= hub.settings.build_slots:
                found.append(f"builds: {hub!r}")
        if self._pods != sum(hub.pods for hub in self.hubs):
            found.append("pods of all")
        in_flight = sum(member.in_flight for each in self.edges for member in each.members)
        if in_flight != self.under_way:
            found.append(f"{in_flight} leases for {self.under_way} launches")
        if sum(self.tally.fates.values()) > self.tally.asked:
            found.append("a launch ended twice")
        return found
