"""The store of a fleet in Redis 7 or newer, or Valkey: one server, a Sentinel's, or a cluster.

What has to be decided for all edges at once is a script there, so it is decided in one step. Times in scripts
are the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from fedproxy.control.store import PRESENCE, Beat, Conflict, OldHint, OnTold, Stored, Topic
from fedproxy.decide.slots import Grant
from fedproxy.errors import StoreError
from fedproxy.tasks import cancel, heed_cancel

if TYPE_CHECKING:
    from fedproxy.config.store import StoreAddress
    from fedproxy.decide.slots import Claim

_ANSWER: Final = 1.0  # seconds that the server may take to connect, or for one command ...
_WHOLE: Final = 2.5  # ... and for all that one call needs
_ECHO: Final = 5.0  # seconds between two tests whether what is told arrives
_SETTLE: Final = 2.0  # seconds in which edges tell what they hold after somebody, or everything, was lost
_OLDEST: Final = 7  # major version
_KEPT_HINTS: Final = 4096
_HINTS_AT_A_TIME: Final = 500
_KEEP: Final = 24 * 3600  # seconds after which a fleet that is gone has left nothing but overrides
_MOST_OVERRIDES: Final = 10_000
_CLAIMS_AT_A_TIME: Final = 50
_ANSWERS: Final = 10  # seconds that answers to a question are kept
_GREATEST: Final = 1 << 52  # number that scripts count from
_LONGEST: Final = 200  # characters of what a server says is wrong

# The client raises RuntimeError or AttributeError where a connection is lost while it says hello.
_FAILURES: Final = (
    *(RedisError, OSError, TimeoutError, ValueError, TypeError, IndexError),
    *(RuntimeError, AttributeError),
)
_IN_SCRIPT: Final = re.compile(r"\.? *script: [0-9a-f]{40}.*")

_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: edges, records, lease, order, settling. ARGV: edge, record, presence, wants the lease, known, keep,
# settle; times in ms.
_BEAT: Final = (
    _NOW
    + """
local settling = redis.call('EXISTS', KEYS[1]) == 0
local function bury(edges)
  for _, edge in ipairs(edges) do
    redis.call('ZREM', KEYS[1], edge)
    redis.call('HDEL', KEYS[2], edge)
    settling = true
  end
end
bury(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3]))
-- As the clock of another server had it, before this one took over.
bury(redis.call('ZRANGEBYSCORE', KEYS[1], now + ARGV[3], '+inf'))
-- This edge knows of others and is not known: everything was lost, and those that come now are not all.
local lost = tonumber(ARGV[5]) > 1 and not redis.call('ZSCORE', KEYS[1], ARGV[1])
if lost then
  redis.call('SET', KEYS[5], 'lost', 'PX', ARGV[7])
elseif settling and redis.call('GET', KEYS[5]) ~= 'lost' then
  redis.call('SET', KEYS[5], '1', 'PX', ARGV[7])
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
local holder = redis.call('GET', KEYS[3])
if holder == false or holder == ARGV[1] then
  if ARGV[4] == '1' then
    redis.call('SET', KEYS[3], ARGV[1], 'PX', ARGV[3])
    holder = ARGV[1]
  elseif holder then
    redis.call('DEL', KEYS[3])
    holder = false
  end
end
local edges = redis.call('ZCARD', KEYS[1])
local since = redis.call('GET', KEYS[5])
local knows = not since or (since ~= 'lost' and edges >= tonumber(ARGV[5]))
return {redis.call('GET', KEYS[4]) or '0', edges, holder or '', knows and 1 or 0}
"""
)

# The rules of `decide.slots`: `grant` and `kept`, for many members. KEYS: edges, settling, slots of each.
# ARGV: edge, presence, known, keep; then most, held, used and wants of each member.
_SLOTS: Final = (
    _NOW
    + """
local alive, edges = {}, 0
for _, edge in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. (now - ARGV[2]), '+inf')) do
  alive[edge] = true
  edges = edges + 1
end
local since = redis.call('GET', KEYS[2])
local grows = not since or (since ~= 'lost' and edges >= tonumber(ARGV[3]))
if not alive[ARGV[1]] then
  -- Everything may have been lost since its last sign of life.
  edges = edges + 1
  grows = false
end
local granted = {}
for at = 3, #KEYS do
  local first = 5 + (at - 3) * 4
  local most, held = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  local used, wants = tonumber(ARGV[first + 2]), ARGV[first + 3] == '1'
  local others, all, starving, spares = 0, used, false, {}
  local fields = redis.call('HGETALL', KEYS[at])
  for i = 1, #fields, 2 do
    if fields[i] ~= ARGV[1] then
      local its, taken, wanting = string.match(fields[i + 1], '^(%d+) (%d+) ([01])$')
      if its and alive[fields[i]] then
        others = others + its
        all = all + taken
        spares[#spares + 1] = its - taken
        if wanting == '1' and tonumber(its) <= tonumber(taken) then starving = true end
      else
        redis.call('HDEL', KEYS[at], fields[i])
      end
    end
  end
  local free, given = math.max(0, most - all), 0
  local even = math.floor(free / edges)
  for _, spare in ipairs(spares) do given = given + math.max(0, spare - even) end
  local target = used + even
  if wants or (not starving and given < free % edges) then target = target + 1 end
  local slots = math.max(0, math.min(target, most - others, grows and most or held))
  local lacks = wants or (even > 0 and 2 * (slots - used) <= even)
  held = math.max(slots, used, held)
  if held > 0 or wants then
    redis.call('HSET', KEYS[at], ARGV[1], string.format('%d %d %d', held, used, wants and 1 or 0))
    redis.call('PEXPIRE', KEYS[at], ARGV[4])
  else
    redis.call('HDEL', KEYS[at], ARGV[1])
  end
  granted[#granted + 1] = slots
  granted[#granted + 1] = (grows and slots < target and lacks) and 1 or 0
end
return granted
"""
)

# An order that no edge has given, as it is too great to count on from there, is none.
_ORDERS: Final = """
local function known(text)
  local order = tonumber(string.match(text or '', '^%d+$') or '') or 0
  return order <= 2^52 and order or 0
end
local function order_of(stored)
  return stored and known(string.match(stored, '^(%d+) ')) or 0
end
local newest = known(redis.call('GET', KEYS[2]) or '')
"""

# KEYS: overrides, order. ARGV: member, override, base or nothing, known, most.
_SET: Final = (
    _ORDERS
    + """
local before = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[3] ~= '' and order_of(before) > tonumber(ARGV[3]) then return {'0', before} end
if not before and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[5]) then
  return redis.error_reply('FULL there are overrides of ' .. ARGV[5] .. ' members, and no more are kept')
end
newest = string.format('%.0f', math.max(newest, order_of(before), tonumber(ARGV[4])) + 1)
redis.call('SET', KEYS[2], newest)
redis.call('HSET', KEYS[1], ARGV[1], newest .. ' ' .. ARGV[2])
return {newest, ''}
"""
)

# KEYS: overrides, order. ARGV: member and stored override of each.
_RESTORE: Final = (
    _ORDERS
    + """
for at = 1, #ARGV, 2 do
  local order = order_of(ARGV[at + 1])
  if order > order_of(redis.call('HGET', KEYS[1], ARGV[at])) then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  end
  newest = math.max(newest, order)
end
redis.call('SET', KEYS[2], string.format('%.0f', newest))
"""
)

# KEYS: of each client. ARGV: each, per, then the launches of each client; times in ms.
_RATE: Final = (
    _NOW
    + """
local left = {}
for at = 1, #KEYS do
  local paid = tonumber(redis.call('GET', KEYS[at]) or now) or now
  paid = math.max(now, math.min(paid, now + ARGV[2]))
  paid = math.min(paid + ARGV[at + 2] * ARGV[1], now + ARGV[2])
  local rest = math.max(1, math.ceil(paid - now))
  redis.call('SET', KEYS[at], string.format('%.0f', paid), 'PX', rest)
  left[at] = rest
end
return left
"""
)

# KEYS: hints. ARGV: content, most, keep, channel, how a message begins there, edge.
_HINT: Final = """
local at = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'hint', ARGV[1], 'edge', ARGV[6])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5] .. at .. '\\0' .. ARGV[1])
"""

# KEYS: edges, records, lease. ARGV: edge.
_LEAVE: Final = """
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
"""


class RedisStore:
    """See `Store`. prefix: of all its keys and channels, so that several fleets may share a server."""

    def __init__(self, address: StoreAddress, prefix: str) -> None:
        self.place = address.place
        self._commands = Counter[str]()
        self._address = address
        # In a cluster all keys of a fleet are to be in one slot.
        self._prefix = f"{{{prefix}}}:" if address.kind == "cluster" else f"{prefix}:"
        self._client: Redis | RedisCluster | None = None
        self._sentinels: Sequence[Redis] = ()
        self._scripts: dict[str, Any] = {}
        self._reader: asyncio.Task[None] | None = None
        self._edge = ""
        self._known = 1

    @property
    def commands(self) -> Mapping[str, int]:
        """See `Store`."""
        return self._commands

    def _key(self, name: str) -> str:
        return self._prefix + name

    @property
    def _channel(self) -> str:
        # Channels belong to no database.
        database = self._address.database
        return self._key(f"told:{database}" if database else "told")

    # Connections

    async def open(self, edge: str, told: OnTold, lost: Callable[[], None]) -> None:
        """See `Store`."""
        await self.close()
        self._edge = edge
        async with self._asking("connect"):
            client = self._client = self._connect()
            await self._check_version(client)
            self._scripts = {
                name: client.register_script(text)
                for name, text in (
                    *(("beat", _BEAT), ("slots", _SLOTS), ("set_override", _SET), ("restore", _RESTORE)),
                    *(("rate", _RATE), ("hint", _HINT), ("leave", _LEAVE)),
                )
            }
            ready = asyncio.get_running_loop().create_future()
            self._reader = asyncio.get_running_loop().create_task(self._listen(client, told, lost, ready))
            await ready

    def _connect(self) -> Redis | RedisCluster:
        address = self._address
        options: dict[str, Any] = {
            "username": address.user,
            "password": address.password,
            "socket_timeout": _ANSWER,
            "socket_connect_timeout": _ANSWER,
            "retry": Retry(NoBackoff(), 0),
            "client_name": f"fedproxy:{self._edge}",
        }
        if address.tls:
            options |= {"ssl": True, "ssl_ca_certs": str(address.ca) if address.ca else None}
        if address.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in address.servers]
            return RedisCluster(startup_nodes=nodes, **options)
        options["db"] = address.database
        if address.kind == "sentinel":
            own = {key: options[key] for key in ("socket_timeout", "socket_connect_timeout", "retry")}
            own |= {key: value for key, value in options.items() if key.startswith("ssl")}
            sentinel = Sentinel(list(address.servers), sentinel_kwargs=own, **options)  # type: ignore[no-untyped-call]
            self._sentinels = sentinel.sentinels
            found: Redis = sentinel.master_for(address.service)
            return found
        ((host, port),) = address.servers
        return Redis(host=host, port=port, **options)

    async def _check_version(self, client: Redis | RedisCluster) -> None:
        try:
            if isinstance(client, RedisCluster):
                # What others tell is not heard by a client that does not know the servers yet.
                await client.initialize()
                return
            info = await client.info("server")
        except NoPermissionError:
            return
        version = str(info.get("redis_version", ""))
        major = version.partition(".")[0]
        if major.isdecimal() and int(major) < _OLDEST:
            raise StoreError(f"is Redis {version[:20]}, expected {_OLDEST} or newer", "connect")

    async def _listen(
        self,
        client: Redis | RedisCluster,
        told: OnTold,
        lost: Callable[[], None],
        ready: asyncio.Future[None],
    ) -> None:
        channel, echo = self._channel, self._key(f"echo:{self._edge}")
        pubsub = client.pubsub()
        heard = time.monotonic()
        try:
            await pubsub.subscribe(channel, echo)
            while True:
                message = await pubsub.get_message(timeout=_ECHO / 2)
                heed_cancel()
                now = time.monotonic()
                if message is not None:
                    heard = now
                    if message["type"] == "subscribe" and not ready.done():
                        ready.set_result(None)
                    elif message["type"] == "message" and message["channel"].decode() == channel:
                        self._on_message(message["data"], told)
                elif now - heard > 2 * _ECHO:
                    raise TimeoutError
                elif now - heard > _ECHO:
                    await client.publish(echo, b"")
        except _FAILURES as error:
            if ready.done():
                lost()
            else:
                ready.set_exception(StoreError(_words_of(error), "subscribe"))
        finally:
            with contextlib.suppress(*_FAILURES):
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _on_message(self, data: bytes, told: OnTold) -> None:
        """Ignores what this edge sent itself, and what nobody here understands."""
        topic, _, rest = data.partition(b"\0")
        edge, _, content = rest.partition(b"\0")
        with contextlib.suppress(ValueError):
            if edge != self._edge.encode():
                told(Topic(topic.decode("ascii", "replace")), content)

    async def close(self) -> None:
        """See `Store`."""
        reader, self._reader = self._reader, None
        client, self._client = self._client, None
        if reader is not None:
            await cancel([reader])
        closing = [*self._sentinels, *([client] if client is not None else [])]
        self._sentinels = ()
        for each in closing:
            with contextlib.suppress(*_FAILURES):
                async with asyncio.timeout(_ANSWER):
                    await each.aclose()

    @asynccontextmanager
    async def _asking(self, command: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_WHOLE):
                yield
        except _FAILURES as error:
            self._commands["failed"] += 1
            raise StoreError(_words_of(error), command) from error
        except StoreError:
            self._commands["failed"] += 1
            raise
        heed_cancel()
        self._commands["ok"] += 1

    @property
    def _redis(self) -> Any:
        # The types of the client's methods are those of its blocking form as well.
        if self._client is None:
            raise StoreError("is not connected")
        return self._client

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
        async with self._asking(script):
            if self._client is None:
                raise StoreError("is not connected")
            return await self._scripts[script](keys=[self._key(key) for key in keys], args=list(arguments))

    # Who is there

    async def beat(self, record: bytes, known: int, wants_lease: bool) -> Beat:
        """See `Store`."""
        self._known = known
        order, edges, holder, knows = await self._run(
            "beat",
            ["edges", "records", "lease", "order", "settling"],
            [
                *(self._edge, record, round(PRESENCE * 1000), int(wants_lease), known),
                *(_KEEP * 1000, round(_SETTLE * 1000)),
            ],
        )
        return Beat(_number(order), int(edges), holder.decode("utf-8", "replace") or None, bool(knows))

    async def leave(self) -> None:
        """See `Store`."""
        await self._run("leave", ["edges", "records", "lease"], [self._edge])

    async def records(self) -> Mapping[str, bytes]:
        """See `Store`."""
        return await self._hash("records")

    async def _hash(self, name: str) -> Mapping[str, bytes]:
        async with self._asking(name):
            found = await self._redis.hgetall(self._key(name))
        return {field.decode("utf-8", "replace"): value for field, value in found.items()}

    # Overrides

    async def overrides(self) -> Mapping[str, Stored]:
        """See `Store`."""
        return {member: _stored(value) for member, value in (await self._hash("overrides")).items()}

    async def set_override(self, member: str, content: bytes, base: int | None, known: int) -> int | Conflict:
        """See `Store`."""
        over = "" if base is None else base
        order, by = await self._run(
            "set_override", ["overrides", "order"], [member, content, over, known, _MOST_OVERRIDES]
        )
        return Conflict(_stored(by)) if by else _number(order)

    async def restore(self, overrides: Mapping[str, Stored]) -> None:
        """See `Store`."""
        offered = [
            part
            for member, (order, content) in overrides.items()
            for part in (member, b"%d %b" % (order, content))
        ]
        await self._run("restore", ["overrides", "order"], offered)

    # Launches

    async def slots(self, claims: Mapping[str, Claim]) -> Mapping[str, Grant]:
        """See `Store`."""
        found: dict[str, Grant] = {}
        rest = list(claims.items())
        while rest:
            # Nobody else is served there while a script runs.
            some, rest = rest[:_CLAIMS_AT_A_TIME], rest[_CLAIMS_AT_A_TIME:]
            arguments = [
                part for _, claim in some for part in (claim.most, claim.held, claim.used, int(claim.wants))
            ]
            granted = await self._run(
                "slots",
                ["edges", "settling", *(f"slots:{member}" for member, _ in some)],
                [self._edge, round(PRESENCE * 1000), self._known, _KEEP * 1000, *arguments],
            )
            for at, (member, _) in enumerate(some):
                found[member] = Grant(int(granted[2 * at]), bool(granted[2 * at + 1]))
        return found

    async def rate(self, launches: Mapping[bytes, int], each: float, per: float) -> Mapping[bytes, float]:
        """See `Store`."""
        keys = [f"rate:{client.hex()}" for client in launches]
        left = await self._run("rate", keys, [each * 1000, round(per * 1000), *launches.values()])
        return {client: rest / 1000 for client, rest in zip(launches, left, strict=True)}

    # What is told

    def _message(self, topic: Topic, content: bytes) -> bytes:
        return b"%b\0%b\0%b" % (topic.value.encode(), self._edge.encode(), content)

    async def tell(self, topic: Topic, content: bytes) -> None:
        """See `Store`."""
        async with self._asking("tell"):
            await self._redis.publish(self._channel, self._message(topic, content))

    async def hint(self, content: bytes) -> None:
        """See `Store`."""
        begin = self._message(Topic.HINT, b"")
        await self._run("hint", ["hints"], [content, _KEPT_HINTS, _KEEP, self._channel, begin, self._edge])

    async def hints(self, after: str | None) -> Sequence[OldHint]:
        """See `Store`."""
        async with self._asking("hints"):
            begin = f"({after}" if after is not None else "-"
            found = await self._redis.xrange(self._key("hints"), begin, "+", _HINTS_AT_A_TIME)
            seconds, micros = await self._redis.time() if found else (0, 0)
        now = seconds + micros / 1e6
        hints = []
        for place, fields in found:
            at = place.decode("ascii", "replace")
            told = _number(at.partition("-")[0].encode()) / 1000
            edge = fields.get(b"edge", b"").decode("utf-8", "replace")
            hints.append(OldHint(at, max(0.0, now - told), edge, fields.get(b"hint", b"")))
        return hints

    # Values

    async def put(self, key: str, content: bytes, seconds: float, *, new: bool = False) -> bool:
        """See `Store`."""
        async with self._asking("put"):
            ms = round(seconds * 1000)
            return bool(await self._redis.set(self._key(f"value:{key}"), content, px=ms, nx=new))

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        async with self._asking("get"):
            found: bytes | None = await self._redis.get(self._key(f"value:{key}"))
        return found

    async def report(self, reports: Mapping[str, bytes], seconds: float) -> None:
        """See `Store`."""
        async with self._asking("report"):
            if reports:
                await self._redis.hset(self._key("reports"), mapping=dict(reports))
            await self._redis.pexpire(self._key("reports"), round(seconds * 1000))

    async def reports(self) -> Mapping[str, bytes]:
        """See `Store`."""
        return await self._hash("reports")

    async def answer(self, question: str, content: bytes) -> None:
        """See `Store`."""
        key = self._key(f"answers:{question}")
        async with self._asking("answer"):
            await self._redis.rpush(key, content)
            await self._redis.expire(key, _ANSWERS)

    async def answers(self, question: str, after: int = 0) -> Sequence[bytes]:
        """See `Store`."""
        async with self._asking("answers"):
            found: list[bytes] = await self._redis.lrange(self._key(f"answers:{question}"), after, -1)
        return found


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 17 and int(text) <= _GREATEST else 0


def _stored(value: bytes) -> Stored:
    order, _, content = value.partition(b" ")
    return Stored(_number(order), content)


def _words_of(error: BaseException) -> str:
    """What went wrong, for people: one line, and not a long one."""
    if isinstance(error, TimeoutError) and not str(error):
        return "did not answer in time"
    lines = str(error).splitlines() or [type(error).__name__]
    if lines[0].startswith("HELLO must be called with the client already authenticated"):
        return "wants a password"
    # Where in a script it happened says nothing to people.
    return _IN_SCRIPT.sub("", lines[0]).rstrip(". ")[:_LONGEST]
