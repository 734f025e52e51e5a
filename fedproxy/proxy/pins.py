"""Affinity cookies: the members that a cookie's value names, and when it is to be renewed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fedproxy.decide.member import Intent, Member
from fedproxy.wire import cookie

_MAINT: Final = Intent.MAINT
_MOST: Final = 16_384
_LONGEST: Final = 160  # bytes of a value: two names and a time, which is all that is ever set
_AHEAD: Final = 60.0  # seconds by which another edge's clock may differ


class Pin:
    """What a cookie says.

    member: where the visitor is sent. home: where they were before they were moved, and may have something
    running; None if they were not. stale: it is old enough to be renewed.
    """

    __slots__ = ("home", "member", "stale")

    def __init__(self, member: Member, home: Member | None, stale: bool) -> None:
        self.member = member
        self.home = home
        self.stale = stale

    @property
    def session_member(self) -> Member:
        """The member of a session whose own is not known."""
        home = self.home
        return self.member if home is None or home.intent is _MAINT else home


class Pins:
    """Reads and writes the cookie of one config.

    fresh: the members by values that are not to be renewed now, for reading; it is filled as values come. A
    value is the member's own from the config, which has no age, or that with a stamp (`wire.cookie.stamp`).
    """

    def __init__(
        self,
        name: str,
        max_age: int,
        values: Mapping[str, bytes],
        members: Mapping[str, Member],
        wall: Callable[[], float],
    ) -> None:
        self._name = name
        self._max_age = max_age
        self._values = values
        self._by_value = {value: members[name] for name, value in values.items()}
        self._wall = wall
        self._turned = wall()
        # The fields since the last sweep, as of one second.
        self._made: dict[tuple[Member, bool, Member | None], bytes] = {}
        self.fresh: dict[bytes | None, Member] = {}
        self._pins: dict[bytes, Pin] = {}
        self._forget()

    @property
    def quarter(self) -> float:
        """Seconds after which a cookie is renewed: a quarter of the time for which browsers keep it."""
        return self._max_age / 4

    def find(self, values: bytes | None, fits: Callable[[Member], bool] | None = None) -> Pin | None:
        """What the cookie's value says, or the first of several, joined by semicolons, whose member `fits`.

        If none fits, the first that names a member. None if no value does.
        """
        if not values:
            return None
        pin = self._pins.get(values)
        if pin is not None:
            return pin
        first = None
        for value in values.split(b";"):
            named, time, home = cookie.read_stamp(value)
            member = self._by_value.get(named)
            if member is None:
                continue
            pin = Pin(member, self._by_value.get(home), time is not None and self._is_stale(time))
            if fits is None or fits(member):
                if not pin.stale and value == values and len(value) <= _LONGEST:
                    self._keep(value, pin)
                return pin
            first = first or pin
        return first

    def _is_stale(self, time: int) -> bool:
        return not -_AHEAD <= self._wall() - time <= self.quarter

    def set_cookie(self, member: Member, secure: bool, home: Member | None = None) -> bytes | None:
        """The value of a Set-Cookie field that keeps a visitor at a member; None if that is not in force."""
        key = member, secure, home
        made = self._made.get(key)
        if made is None:
            value = self._values.get(member.name)
            if value is None:
                return None
            moved = home is not None and home is not member
            at_home = self._values.get(home.name, b"") if home is not None and moved else b""
            stamped = cookie.stamp(value, int(self._wall()), at_home)
            made = cookie.set_cookie(self._name, stamped, self._max_age, secure=secure)
            self._made[key] = made
        return made

    def _keep(self, value: bytes, pin: Pin) -> None:
        if len(self.fresh) >= _MOST:
            self._forget()
        self.fresh[value] = pin.member
        self._pins[value] = pin

    def _forget(self) -> None:
        self._pins.clear()
        self.fresh.clear()
        for value, member in self._by_value.items():
            self.fresh[value] = member

    def sweep(self) -> None:
        """Forgets what it has made, as time has passed, and now and then what is fresh: it may be stale.

        To be called about once a second.
        """
        self._made.clear()
        now = self._wall()
        if not 0 <= now - self._turned < self.quarter / 16:
            self._turned = now
            self._forget()
