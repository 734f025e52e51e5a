"""The admin listener: a page for operators, the admin API, health and metrics.

Reading is open to anyone who can reach the listener, unless `admin.read` asks for a token; every write needs
a token with that right. A write is validated as a whole before any of it is applied, and it is answered when
every worker has it.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiohttp_jinja2
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from markupsafe import Markup

from fedproxy import __version__
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import shares
from fedproxy.errors import ConfigError, StoreError
from fedproxy.observe.history import Figures, History
from fedproxy.observe.metrics import View, content_type, expose
from fedproxy.proxy.explaining import Question
from fedproxy.web.answers import RefusedError, answer_errors, create_app, request_id, takes_gzip
from fedproxy.web.gate import CHALLENGE, Gate
from fedproxy.web.live import MOST_STREAMS, Live, log
from fedproxy.web.openapi import description
from fedproxy.web.page import Asset, environment, icon, stylesheet
from fedproxy.web.turns import in_turns
from fedproxy.web.view import dashboard, describe, has_auto, probed, ramp_shown

if TYPE_CHECKING:
    from fedproxy.config.model import Config
    from fedproxy.config.report import Difference
    from fedproxy.config.units import Weight
    from fedproxy.control.ramps import RampSeen
    from fedproxy.decide.knowledge import Learned
    from fedproxy.decide.snapshot import Survey
    from fedproxy.errors import Fault
    from fedproxy.observe.fleet import FleetSeen, MembersAcross

_POLICY: Final = "script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'none'"
_MOST: Final = 1e18
_MEMBER: Final = "/members/{name:[^/]+}"
_BODY_TIME: Final = 10.0  # seconds, for the whole body
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StuckWorker(Protocol):
    """A worker whose event loop has not reported for a while."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def seconds(self) -> float:
        """The time since its last report."""


class AdminState(Protocol):
    """What the admin listener needs to know and do."""

    @property
    def config(self) -> Config:
        """The config in force."""

    @property
    def listening(self) -> bool:
        """Whether visitors are accepted."""

    @property
    def history(self) -> History:
        """The last hour."""

    @property
    def started_at(self) -> float:
        """When the edge started, in seconds since the epoch."""

    @property
    def reloaded_at(self) -> float | None:
        """When a config was last loaded, in seconds since the epoch; None if none was."""

    def next_look(self) -> asyncio.Future[None]:
        """Done when the history has seen the next survey. Shared: do not cancel it."""

    def stuck(self) -> Sequence[StuckWorker]:
        """The workers that should serve but whose event loop does not respond."""

    async def glance(self) -> Survey:
        """As `survey`, but in less than a second; concurrent callers share one survey."""

    async def survey(self) -> Survey:
        """The members and counts of all workers together, asked of each worker now."""

    def known(self) -> Survey:
        """The last known survey, about a second old, without asking the workers. Counts may be live."""

    def view(self) -> View:
        """What the metrics are made of: the last known survey, and the rest as it is now."""

    def certificates(self) -> Mapping[str, float]:
        """When each certificate expires, in seconds since the epoch, by its name."""

    def config_masked(self, *, own: bool = False) -> dict[str, Any]:
        """The config in force, without its secrets; own: without what operators changed at run time."""

    def set_by(self, name: str) -> str | None:
        """Who set last what an operator set of a member; None if nobody did, or it is not known."""

    def origin(self, name: str) -> str:
        """Where a member comes from: `config`, `directory: FILE`, `dns: NAME` or `operator`."""

    def ramp(self, name: str) -> RampSeen | None:
        """How far a member's ramp has come; None if it has none."""

    def learned(self, name: str) -> Learned:
        """What launches have taught of a member."""

    def fleet(self) -> FleetSeen:
        """The edges that share a store with this one, or this one alone."""

    def is_pending(self, name: str) -> bool:
        """Whether the other edges do not know yet what operators set of a member, as the store is away."""

    async def fleet_members(self) -> MembersAcross:
        """The members as all edges see them, within a few seconds. Raises StoreError."""

    async def explain(self, question: Question) -> str | None:
        """Why a request would go where it goes, as JSON; None for one that no visitor could make.

        Raises TimeoutError if no worker is there who could say it.
        """

    def note_refusal(self, client: str) -> None:
        """A request of this client had a wrong token, or one with too few rights."""

    async def change(self, name: str, intent: Intent | None, weight: Weight | None, who: str) -> None:
        """Sets the operator's intent for a member: saves it and sends it to all workers. who: does it.

        Raises KeyError if no member has this name, ConfigError, and OSError, with a sentence as its strerror,
        if it cannot be saved. In each case nothing has changed.
        """

    async def join(self, name: str, settings: object, who: str) -> None:
        """Adds a member, or replaces the one with that name. Raises ConfigError and OSError."""

    async def leave(self, name: str, who: str) -> None:
        """Removes a member. Raises as `change` does; ConfigError if the federation needs it."""

    async def preview_change(
        self, name: str, intent: Intent | None, weight: Weight | None
    ) -> list[Difference]:
        """What `change` would change. Raises as it does, and so do the other three."""

    async def preview_join(self, name: str, settings: object) -> list[Difference]:
        """What `join` would change."""

    async def preview_leave(self, name: str) -> list[Difference]:
        """What `leave` would change."""

    async def preview_reload(self) -> list[Difference]:
        """What `reload` would change."""

    async def reload(self, who: str) -> list[Fault]:
        """Reloads the config; returns its faults, or an empty list if it is now in force."""


def create_admin_app(state: AdminState, streams: int = MOST_STREAMS) -> web.Application:
    """The admin listener's application. streams: the most live pages open at once."""
    gate = Gate(state)
    app = create_app(answer_errors(b"application/json"), _POLICY)
    app.middlewares.append(gate.guard_reading)
    templates = app[aiohttp_jinja2.APP_KEY] = environment()
    live = Live(state, templates.get_template("live.html"), streams)
    app.on_shutdown.append(live.close)
    admin = _Admin(state, live, gate)
    app.router.add_get("/", admin.page)
    app.router.add_get("/events", live.stream, allow_head=False)
    app.router.add_get("/log", admin.log)
    app.router.add_get("/whoami", admin.whoami)
    for asset in admin.assets:
        app.router.add_get(asset.path, asset.serve)
    app.router.add_get("/metrics", admin.metrics)
    app.router.add_get("/health/live", admin.live)
    app.router.add_get("/health/ready", admin.ready)
    app.router.add_get("/members", admin.members)
    app.router.add_get(_MEMBER, admin.member)
    app.router.add_patch(_MEMBER, admin.change)
    app.router.add_put(_MEMBER, admin.join)
    app.router.add_delete(_MEMBER, admin.leave)
    app.router.add_get("/edges", admin.edges)
    app.router.add_get("/config", admin.config)
    app.router.add_get("/certificates", admin.certificates)
    app.router.add_get("/openapi.json", admin.openapi)
    app.router.add_post("/reload", admin.reload)
    app.router.add_post("/explain", admin.explain)
    return app


class _Admin:
    def __init__(self, state: AdminState, live: Live, gate: Gate) -> None:
        self._state = state
        self._live = live
        self._gate = gate
        self._style = stylesheet("/style.css")
        self._icon = icon("/icon.svg")
        self._styles = Asset("vendor/uPlot.min.css", "text/css", "/uplot.css")
        # Each uses what the ones before it define.
        self._scripts = (
            Asset("vendor/uPlot.iife.min.js", "text/javascript", "/uplot.js"),
            Asset("charts.js", "text/javascript", "/charts.js"),
            Asset("live.js", "text/javascript", "/live.js"),
        )
        self.assets = (self._style, self._icon, self._styles, *self._scripts)

    # Reading

    async def page(self, request: web.Request) -> web.Response:
        # Without the token that it needs, a browser gets the page without content, and asks for the token.
        may_read = self._gate.may_read(request)
        context = {
            "css": None,
            "style": self._style.url,
            "icon": self._icon.url,
            "styles": self._styles.url,
            "scripts": [script.url for script in self._scripts],
            "version": __version__,
            "locked": self._state.config.admin.read == "token",
            "live": Markup(await self._live.page() if may_read else ""),  # noqa: S704 -- a template made it
        }
        status = 200 if may_read else 401
        response = aiohttp_jinja2.render_template("members.html", request, context, status=status)
        if not may_read:
            response.headers.update(CHALLENGE)
        response.headers["Vary"] = "Accept-Encoding"
        if takes_gzip(request):
            # In a thread, if it is large.
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def whoami(self, request: web.Request) -> web.Response:
        name, settings = self._gate.who(request)
        reading = self._state.config.admin.read
        return web.json_response({"name": name, "rights": settings.rights, "reading": reading})

    async def log(self, request: web.Request) -> web.Response:
        return web.json_response(log(self._state.history.events))

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        # This loop may also serve visitors, and other scrapes.
        text = await in_turns(expose(self._state.view(), accept))
        response = web.Response(
            body=text.encode(),
            headers={"Content-Type": content_type(accept), "Vary": "Accept, Accept-Encoding"},
        )
        if takes_gzip(request):
            # In a thread, if it is large.
            response.enable_compression(web.ContentCoding.gzip)
        return response

    async def live(self, request: web.Request) -> web.Response:
        # If the data plane runs in this loop, answering at all shows that it is alive.
        stuck = self._stuck()
        return web.json_response({"live": not stuck} | stuck, status=503 if stuck else 200)

    async def ready(self, request: web.Request) -> web.Response:
        survey = await self._state.glance()
        available = [member.name for member in survey.members if member.available]
        stuck = self._stuck()
        ready = self._is_ready(survey) and not stuck
        answer = {"ready": ready, "listening": self._state.listening, "available": available} | stuck
        return web.json_response(answer, status=200 if ready else 503)

    async def members(self, request: web.Request) -> web.Response:
        if _flag(request, "fleet"):
            return await self._members_of_fleet()
        survey = await self._state.survey()
        edge = {"requests": survey.edge.requests, "refused": dict(survey.edge.rejected)}
        return web.json_response({"members": self._described(survey), "edge": edge})

    async def _members_of_fleet(self) -> web.Response:
        try:
            found = await self._state.fleet_members()
        except StoreError as error:
            text = f"The other edges cannot be asked: the store does not answer: {error}."
            raise RefusedError(503, text) from error
        return web.json_response(asdict(found))

    async def edges(self, request: web.Request) -> web.Response:
        fleet = self._state.fleet()
        store = {**asdict(fleet.store), "since": _dated(fleet.store.since)}
        edges = [{**asdict(edge), "started_at": _dated(edge.started_at)} for edge in fleet.edges]
        return web.json_response({"store": store, "edges": edges})

    async def member(self, request: web.Request) -> web.Response:
        return web.json_response(self._described_one(await self._state.survey(), _name(request)))

    async def config(self, request: web.Request) -> web.Response:
        own = _flag(request, "own")
        return web.json_response(self._state.config_masked(own=own), dumps=_indented)

    async def certificates(self, request: web.Request) -> web.Response:
        found = [
            {"name": name, "expires": _dated(ends)}
            for name, ends in sorted(self._state.certificates().items())
        ]
        return web.json_response({"certificates": found})

    async def openapi(self, request: web.Request) -> web.Response:
        return web.json_response(description(), dumps=_indented)

    async def explain(self, request: web.Request) -> web.Response:
        self._gate.reader(request)
        question = _read_question(await _body(request))
        try:
            text = await self._state.explain(question)
        except TimeoutError:
            raise RefusedError(503, "No worker is there who could say it.") from None
        if text is None:
            raise RefusedError(422, f"url: no visitor can ask for {question.target[:200]!r}.")
        found = json.loads(text)
        if found.get("member") is not None:
            found["origin"] = self._state.origin(found["member"])
        return web.json_response(found)

    # Writing

    async def change(self, request: web.Request) -> web.Response:
        who = self._gate.writer(request)
        name = _name(request)
        if name not in self._state.config.active_members:
            raise _unknown()
        intent, weight = _read_change(await _body(request))
        if _is_dry(request):
            return await _preview(request, self._state.preview_change(name, intent, weight))
        faults = await _write(self._state.change(name, intent, weight, who))
        if faults:
            return _refuse(request, faults)
        return web.json_response(self._described_one(await self._state.survey(), name))

    async def join(self, request: web.Request) -> web.Response:
        who = self._gate.writer(request)
        name, settings = _name(request), await _body(request)
        if _is_dry(request):
            return await _preview(request, self._state.preview_join(name, settings))
        known = name in self._state.config.active_members
        faults = await _write(self._state.join(name, settings, who))
        if faults:
            return _refuse(request, faults)
        # A worker that answers the survey has already applied the change: messages arrive in order.
        survey = await self._state.survey()
        if survey.named(name) is None:
            # It was added as a past member, which has no state to describe.
            return self._nothing_but(name)
        return web.json_response(self._described_one(survey, name), status=200 if known else 201)

    async def leave(self, request: web.Request) -> web.Response:
        who = self._gate.writer(request)
        if _is_dry(request):
            return await _preview(request, self._state.preview_leave(_name(request)))
        name = _name(request)
        faults = await _write(self._state.leave(name, who))
        if faults:
            return _refuse(request, faults)
        await self._state.survey()
        return self._nothing_but(name)

    async def reload(self, request: web.Request) -> web.Response:
        who = self._gate.writer(request)
        if _is_dry(request):
            return await _preview(request, self._state.preview_reload())
        faults = await self._state.reload(who)
        return _refuse(request, faults) if faults else web.json_response({"reloaded": True})

    # Shared

    def _nothing_but(self, name: str) -> web.Response:
        """Where no member can be described: empty, unless an override of it waits for the store."""
        return (
            web.json_response({"pending": True}) if self._state.is_pending(name) else web.Response(status=204)
        )

    def _is_ready(self, survey: Survey) -> bool:
        return self._state.listening and any(member.answers for member in survey.members)

    def _stuck(self) -> dict[str, Any]:
        """The part of an answer about workers that do not respond; empty if all do."""
        stuck = [{"pid": each.pid, "seconds": round(each.seconds, 1)} for each in self._state.stuck()]
        return {"not_turning": stuck} if stuck else {}

    def _described_one(self, survey: Survey, name: str) -> dict[str, Any]:
        found = next((found for found in self._described(survey) if found["name"] == name), None)
        if found is None:
            raise _unknown()
        return found

    def _described(self, survey: Survey) -> list[dict[str, Any]]:
        figures = self._state.history.figures()
        parts = shares(survey.members)
        members = self._state.config.members
        return [
            {
                **describe(member, parts[member.name]),
                "auto": has_auto(members.get(member.name)),
                "ramp": ramp_shown(self._state.ramp(member.name)),
                "set_by": self._state.set_by(member.name),
                "source": self._state.origin(member.name),
                "pending": self._state.is_pending(member.name),
                **_learned(self._state.learned(member.name), figures.get(member.name)),
                **probed(member, members.get(member.name)),
                "dashboard": dashboard(members.get(member.name)),
            }
            for member in survey.members
        ]


def _learned(learned: Learned, lately: Figures | None) -> dict[str, Any]:
    """What launches have taught of a member, and its share of new visitors in the last hour."""
    actual = lately.new if lately is not None else None
    with_image, without_image, images = learned
    return {
        "share_actual": None if actual is None else round(actual, 4),
        "launch_seconds": {
            "with_image": None if with_image is None else round(with_image, 1),
            "without_image": None if without_image is None else round(without_image, 1),
        },
        "images_known": images,
    }


def _dated(time: float | None) -> str | None:
    """A time in seconds since the epoch as the API has it; None if there is none, or in no possible year."""
    try:
        return None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def _name(request: web.Request) -> str:
    return request.match_info["name"]


def _unknown() -> RefusedError:
    return RefusedError(404, "There is no member with that name.")


def _flag(request: web.Request, name: str) -> bool:
    """A parameter of the query that is true or false. Raises `RefusedError` for anything else."""
    given = request.query.getall(name, [])
    if not given:
        return False
    if given not in (["true"], ["false"]):
        raise RefusedError(422, f"{name}: expected true or false.")
    return given == ["true"]


def _is_dry(request: web.Request) -> bool:
    """Whether a write is only tried. Raises `RefusedError`: what is misspelt must not become a write."""
    unknown = [name for name in request.query if name != "dry_run"]
    if unknown:
        raise RefusedError(422, f"Unknown parameter {unknown[0][:40]!r}: expected dry_run.")
    return _flag(request, "dry_run")


async def _preview(request: web.Request, found: Awaitable[list[Difference]]) -> web.Response:
    """What a change would change, or why it would be refused. Raises `RefusedError`."""
    differences: list[Difference] = []

    async def look() -> None:
        differences.extend(await found)

    faults = await _write(look())
    if faults:
        return _refuse(request, faults)
    changes = [{"key": each.key, "before": each.before, "after": each.after} for each in differences]
    return web.json_response({"dry_run": True, "changes": changes})


async def _write(change: Awaitable[None]) -> list[Fault]:
    """The faults of a change, or an empty list if it is now in force. Raises `RefusedError`."""
    try:
        await change
    except KeyError as error:
        raise _unknown() from error
    except ConfigError as error:
        return error.faults
    except OSError as error:
        status = 507 if error.errno in _NO_ROOM else 500
        raise RefusedError(status, f"Nothing was changed: {error.strerror or error}.") from error
    return []


def _refuse(request: web.Request, faults: Sequence[Fault]) -> web.Response:
    """422 with every fault."""
    answer = {
        "error": "Unprocessable Content",
        "detail": "; ".join(f"{fault.place}: {fault}" if fault.place else str(fault) for fault in faults),
        "request_id": request_id(request),
        "faults": [
            {"path": fault.path, "message": fault.message}
            | ({"line": fault.place.line, "column": fault.place.column} if fault.place else {})
            | ({"file": fault.place.file} if fault.place and fault.place.file else {})
            for fault in faults
        ],
    }
    return web.json_response(answer, status=422)


async def _body(request: web.Request) -> object:
    """The request's JSON. Raises `RefusedError`."""
    try:
        # aiohttp's server does not report an invalid chunk: it just stops reading.
        async with asyncio.timeout(_BODY_TIME):
            raw = await request.read()
    except TimeoutError as error:
        raise RefusedError(408, "The request's body stopped arriving.") from error
    except (HttpProcessingError, web.RequestPayloadError, ConnectionError) as error:
        raise RefusedError(400, "The request's body is malformed or broke off.") from error
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, "The body is not JSON.") from error


def _read_change(change: object) -> tuple[Intent | None, Weight | None]:
    """The parts of a change, None for each absent one. Raises `RefusedError`."""
    if not isinstance(change, dict) or not change:
        raise RefusedError(422, 'Expected an object with "state", "weight" or both.')
    if not change.keys() <= {"state", "weight"}:
        raise RefusedError(422, 'Unknown key: expected "state", "weight" or both.')
    intent: Intent | None = None
    weight: Weight | None = None
    if "state" in change:
        if change["state"] not in list(Intent):
            raise RefusedError(422, 'state: expected "ready", "drain" or "maint".')
        intent = Intent(change["state"])
    if "weight" in change:
        weight = _read_weight(change["weight"])
    return intent, weight


def _read_weight(given: object) -> Weight:
    """Raises `RefusedError`."""
    if given == "auto":
        return "auto"
    # NaN fails every comparison.
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < _MOST:
        raise RefusedError(422, "weight: expected a number of at least 0, or auto.")
    return float(given)


_URL: Final = re.compile(r"https?://([^/?#\s]+)(/.*|)", re.IGNORECASE)
_COOKIE: Final = re.compile(r"[!#-+\--:<-\[\]-~]+").fullmatch  # RFC 6265 section 4.1.1
_QUESTION: Final = ("url", "cookie", "accept", "client")


def _read_question(body: object) -> Question:
    """A question as `POST /explain` has it. Raises `RefusedError`."""
    if not isinstance(body, dict) or not isinstance(body.get("url"), str):
        raise RefusedError(422, 'Expected an object with "url", and perhaps "cookie", "accept" and "client".')
    for key, value in body.items():
        if key not in _QUESTION:
            raise RefusedError(422, f"Unknown key: expected {', '.join(_QUESTION)}.")
        if not isinstance(value, str) or not value.isprintable() or not value.isascii():
            raise RefusedError(422, f"{key}: expected printable ASCII text.")
    url = body["url"]
    host = ""
    whole = _URL.fullmatch(url)
    if whole is not None:
        host, url = whole[1], whole[2] or "/"
    client = body.get("client", "127.0.0.1")
    try:
        ipaddress.ip_address(client)
    except ValueError:
        raise RefusedError(422, "client: expected an IP address.") from None
    cookie = body.get("cookie")
    if cookie is not None and _COOKIE(cookie) is None:
        raise RefusedError(422, "cookie: expected the value of the affinity cookie.")
    return Question(url, host, cookie, body.get("accept", "*/*"), client)


_indented: Final[Callable[[object], str]] = json.JSONEncoder(indent=2).encode
