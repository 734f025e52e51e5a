"""What only a look at the world tells of a config: addresses that are taken, members that are unhealthy."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedproxy.config.address import Address
from fedproxy.config.advice import Advice, reserve_unfit
from fedproxy.config.check import addresses_of, collisions
from fedproxy.config.places import Finding, Location
from fedproxy.control.names import NameServers
from fedproxy.control.prober import Prober, Report
from fedproxy.control.sources import gather
from fedproxy.errors import StoreError
from fedproxy.serve.admin import ask_admin
from fedproxy.serve.discovering import name_of
from fedproxy.serve.probes import find_targets, probe_policy
from fedproxy.serve.sockets import try_address
from fedproxy.serve.verify import members_in

if TYPE_CHECKING:
    from fedproxy.config.model import AdminSettings, Config
    from fedproxy.serve.verify import CheckedFile

_ASKED = 10.0  # seconds for the admin listener of the edge that may be running


async def look(checked: CheckedFile) -> CheckedFile:
    """The same of a config without faults, with what the addresses and the members say.

    Addresses that a running edge of this config listens on are not taken.
    """
    config = checked.config
    findings, (advice, found), store = await asyncio.gather(
        _try_addresses(config), _find(config), _try_store(config)
    )
    return checked.with_more(findings, [*advice, *store, *await _probe(found)])


async def _try_store(config: Config) -> list[Advice]:
    """Whether an edge could use the store that it shares. Nothing stays there."""
    address = config.shared_store
    if address is None:
        return []
    # Only who has a store needs the package.
    from fedproxy.control.redis_store import RedisStore

    store = RedisStore(address, config.store_prefix)
    try:
        await store.open(f"check#{os.getpid()}", lambda topic, content: None, lambda: None)
        await store.overrides()
        await store.put(f"check:{os.getpid()}", b"", 1.0)
        await store.rate({}, 1.0, 1.0)
    except StoreError as error:
        return [Advice("store-unusable", ("store",), f"at {store.place} cannot be used: {error}")]
    finally:
        await store.close()
    return []


async def _find(config: Config) -> tuple[list[Advice], Config]:
    """The config with the members that its sources have, and what is wrong with the names in DNS."""
    servers = NameServers()
    answers = await asyncio.gather(*(name_of(config, name, servers).ask() for name in config.sources.dns))
    await servers.close()
    advice = [
        Advice("source-unusable", ("sources", "dns", at), text)
        for at, answer in enumerate(answers)
        for text in answer.complaints.values()
    ]
    found = [members_in(config, os.environ), *(each.members for each in answers)]
    return advice, gather(config, found, {}).config


async def _try_addresses(config: Config) -> list[Finding]:
    refused: list[tuple[Location, Address, OSError]] = []
    resolved = []
    for where, address in addresses_of(config):
        try:
            # A name is looked up, and that may take its time.
            resolved.append(await asyncio.to_thread(try_address, address))
        except OSError as error:
            resolved.append(address)
            refused.append((where, address, error))
    own = set()
    if any(error.errno == errno.EADDRINUSE for _, _, error in refused):
        own = _addresses_of(await _ask_running(config.admin))
    taken = [
        Finding(where, f"{error.strerror}, expected an address of this machine that is free")
        for where, address, error in refused
        if not (error.errno == errno.EADDRINUSE and str(address) in own)
    ]
    return [*taken, *collisions(config, resolved)]


async def _ask_running(admin: AdminSettings) -> Any:
    """The config that is in force in an edge with this admin listener; None if nobody there says one."""
    try:
        found = await ask_admin(admin, "/config", _ASKED)
        return json.loads(found.body) if found.status == 200 else None
    except (OSError, ValueError, RecursionError):
        return None


def _addresses_of(running: Any) -> set[str]:
    """The addresses in a config as the admin listener shows it; none if it is something else."""
    try:
        found = {each["address"] for each in running["listen"]} | {running["admin"]["address"]}
    except (TypeError, KeyError):
        return set()
    return {each for each in found if isinstance(each, str)}


async def _probe(config: Config) -> list[Advice]:
    """One round of each member's probes, which are as those of an edge that serves."""
    # Every failure counts, and is shown.
    policy = replace(probe_policy(config), rise=1, fall=1)
    targets = find_targets(config)
    if not targets:
        return []
    reports: dict[str, Report] = {}
    complete = asyncio.Event()

    def note(report: Report) -> None:
        reports.setdefault(report.name, report)
        if len(reports) == len(targets):
            complete.set()

    prober = Prober(note)
    try:
        prober.apply(policy, targets)
        # Two requests and a page, after prime's.
        async with asyncio.timeout(6 * policy.timeout):
            await complete.wait()
    except TimeoutError:
        pass  # said below
    finally:
        await prober.close()
    advice = []
    for target in targets:
        report = reports.get(target.name)
        why = "; ".join(report.details or report.reasons) if report is not None else "did not answer in time"
        if report is None or not report.healthy:
            advice.append(Advice("member-unhealthy", ("members", target.name), f"is unhealthy: {why}"))
        if report is not None:
            settings = config.members[target.name]
            advice += reserve_unfit(target.name, settings, config.health.pod_headroom, report.quota)
    return advice
