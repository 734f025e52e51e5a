"""A federation of toy members, and its config."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

from fedproxy.demo.control import ToyControl
from fedproxy.demo.toy import ToyBinderHub

_TOWNS = ("oxford", "leuven", "bergen", "bologna", "krakow", "coimbra", "uppsala", "heidelberg")
_WEIGHTS = (50, 30, 20)
_QUOTAS = (300, 180, 60)

BREAKER_FAILURES = 5


class DemoFederation:
    """Toy members and their control page, in this process and on this loop, within `async with`.

    `members`: how many, at least 1; the first is prime. `pace`: as of `ToyBinderHub`. candidate: another
    one, which is no member yet.
    """

    def __init__(self, members: int = 3, *, pace: float = 1.0, host: str = "127.0.0.1") -> None:
        if members < 1:
            raise ValueError("a federation has at least one member")
        self._host = host
        self._stack = AsyncExitStack()
        self.hubs = tuple(
            ToyBinderHub(_name(at), pace=pace, quota=_QUOTAS[at % len(_QUOTAS)]) for at in range(members)
        )
        self.candidate = ToyBinderHub(_name(members), pace=pace, quota=_QUOTAS[members % len(_QUOTAS)])
        self._control = ToyControl((*self.hubs, self.candidate))

    def __repr__(self) -> str:
        return f"<DemoFederation {' '.join(hub.name for hub in self.hubs)}>"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for hub in (*self.hubs, self.candidate):
                await hub.start(self._host)
                stack.push_async_callback(hub.stop)
            await self._control.start(self._host)
            stack.push_async_callback(self._control.stop)
            # Only a federation that started whole stays.
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def control_url(self) -> str:
        """The page with every member and every mode; `/NAME/MODE` under it sets one."""
        return self._control.url

    def link(self, edge: str, operators: str) -> None:
        """Tell the control page where the edge and its operators' page are."""
        self._control.links = {
            "The edge": f"{edge}/",
            "Who serves me?": f"{edge}/federation",
            "The operators' page": f"{operators}/",
        }

    def config_dict(self, port: int, admin_port: int, *, token: str | None = None) -> dict[str, Any]:
        """A config for an edge in front of these members; it detects failures sooner than the defaults."""
        admin = {"address": f"127.0.0.1:{admin_port}"}
        # With port 0 the address is only known once the edge listens.
        public = {"public_url": f"http://127.0.0.1:{port}"} if port else {}
        return {
            **public,
            "listen": [{"address": f"127.0.0.1:{port}", "http2": True}],
            "admin": admin if token is None else {**admin, "token": token},
            "workers": 1,
            "health": {
                "interval": "2s",
                "timeout": "1s",
                "fall": 2,
                "unhealthy_interval": "2s",
                "slow_start": "10s",
            },
            "breaker": {"failures": BREAKER_FAILURES, "open": "2s", "open_max": "10s"},
            "timeouts": {"response_head": "5s", "drain": "2s"},
            "members": {hub.name: _member(at, hub) for at, hub in enumerate(self.hubs)},
        }


def _member(at: int, hub: ToyBinderHub) -> dict[str, Any]:
    town = hub.name.removeprefix("toy-").title()
    return {
        "url": hub.url,
        "weight": _WEIGHTS[at % len(_WEIGHTS)],
        "prime": at == 0,
        "run_by": {"name": f"Toy Computing {town}", "url": hub.url},
        "funded_by": {"name": f"Toy Fund {town}", "url": hub.url},
        "contact": f"mailto:binder@{town.lower()}.example.org",
    }


def _name(at: int) -> str:
    town = f"toy-{_TOWNS[at % len(_TOWNS)]}"
    return town if at < len(_TOWNS) else f"{town}-{at // len(_TOWNS) + 1}"
