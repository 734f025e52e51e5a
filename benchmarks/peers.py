"""The measured programs on loopback, each on its own core, and their setup."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import yaml

MEMBERS = ("m0", "m1", "m2")
COOKIE = "fedproxy_member"
SIZES = {"1k": 1024, "64k": 65536, "10m": 10 << 20}
ASSETS = {
    "page": 4_500,
    "static/dist/bundle.js": 1_900_000,
    "static/dist/styles.css": 407_000,
    "static/fonts/icons.woff2": 180_000,
    "static/logo.svg": 9_000,
    "api/repoproviders": 2_500,
}
"""The front page of a BinderHub and what it brings: path and bytes."""

_TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """The benchmark cannot run as requested; the message says why."""


@dataclass(frozen=True)
class Cpu:
    """Processor time in microseconds."""

    user: float
    kernel: float

    def since(self, earlier: Cpu) -> Cpu:
        """What was used between `earlier` and this."""
        return Cpu(self.user - earlier.user, self.kernel - earlier.kernel)


def is_worker(pid: int) -> bool:
    """Whether a process that has not ended is one of the edge's workers."""
    with contextlib.suppress(OSError):
        return b"fedproxy.serve.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


class Process:
    """A program pinned on one core, in a session of its own so that Ctrl-C reaches only the benchmark."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        core: int | Sequence[int],
        folder: Path,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '-')}.log"
        cores = [core] if isinstance(core, int) else core
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, cores)), *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log if stdout is None else stdout,
                stderr=log if stderr is None else stderr,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"<Process {self.name} pid={self._popen.pid} returncode={self._popen.returncode}>"

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def processes(self) -> list[int]:
        """The numbers of the process and of all its descendants that run."""
        return [pid for pid in self._family() if _runs(pid)]

    def ended(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self._popen.poll()

    def cpu(self) -> Cpu:
        """What the process and all its descendants have used so far."""
        ticks = [0, 0]
        for pid in self._family():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                ticks[0] += int(fields[11]) + int(fields[13])
                ticks[1] += int(fields[12]) + int(fields[14])
        return Cpu(ticks[0] * _TICK, ticks[1] * _TICK)

    def memory(self) -> int:
        """Bytes in memory, of the process and all its descendants; what they share counts once."""
        kib = 0
        for pid in self._family():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib += int(rollup.partition("\nPss:")[2].split()[0])
        return kib * 1024

    def require_alive(self) -> None:
        """Raise `BenchmarkError` if it ended."""
        if self._popen.poll() is not None:
            raise BenchmarkError(
                f"{self.name} ended with {self._popen.returncode} while it was measured: {self._last_words()}"
            )

    def wait_ready(self, port: int, path: str, within: float = 15.0, every: float = 0.05) -> None:
        """Return when `path` answers 200; raise `BenchmarkError` if it ends or `within` seconds pass."""
        last, deadline = "no answer", time.monotonic() + within
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise BenchmarkError(f"{self.name} ended by itself: {self._last_words()}")
            try:
                status, _ = fetch(port, path)
            except (OSError, http.client.HTTPException) as error:
                last = str(error)
            else:
                if status == 200:
                    return
                last = f"status {status}"
            time.sleep(every)
        raise BenchmarkError(
            f"{self.name} was not ready within {within:.0f} s ({last}): {self._last_words()}"
        )

    def terminate(self) -> None:
        """Ask it to end, and do not wait."""
        if self._popen.poll() is None:
            self._popen.terminate()

    def stop(self, grace: float = 5.0) -> None:
        """End the process and its descendants: asked first, then forced."""
        family = self._family()
        try:
            self._popen.terminate()
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            pass
        finally:
            for pid, started in family.items():
                # A number that was given to another process meanwhile must not be hit.
                with contextlib.suppress(OSError):
                    if _stat(pid)[19] == started:
                        os.kill(pid, signal.SIGKILL)
            self._popen.wait()

    def _family(self) -> dict[int, str]:
        """The process and its descendants: number -> start time. Those it left behind are of its session."""
        parents, started, family = {}, {}, {self._popen.pid}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    number, fields = int(entry.name), _stat(int(entry.name))
                    parents[number] = int(fields[1])
                    started[number] = fields[19]
                    if int(fields[3]) == self._popen.pid:
                        family.add(number)
        while grown := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= grown
        return {pid: started[pid] for pid in family if pid in started}

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _stat(pid)[0] not in "ZX"
    return False


def fetch(port: int, path: str) -> tuple[int, int]:
    """GET on loopback: status and length of the body. Raises `OSError` or `HTTPException`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, len(response.read())


def require_free(ports: Sequence[int]) -> None:
    """Raise `BenchmarkError` that names the first port that somebody else has."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise BenchmarkError(
                    f"port {port} is in use or not allowed: choose others with --port"
                ) from error


@dataclass(frozen=True)
class Certificate:
    """A chain and its key, as one file each and as one file together."""

    chain: Path
    private_key: Path
    together: Path


@dataclass(frozen=True)
class Setting:
    """What a proxy is set up for, apart from the ports. `tls` adds a listener two ports above the first."""

    log: bool = False
    workers: int = 1
    tls: Certificate | None = None
    http2: bool = False
    """A listener for HTTP/2 in clear, three ports above the first; and it is offered over TLS."""
    traced: float = 0.0
    """Share of the requests; the spans go to the first member, which reads them as it does an upload."""


PLAIN = Setting()
TLS_OFFSET = 2
H2_OFFSET = 3

Write = Callable[[Path, int, Sequence[int], Setting], list[str]]


def names_of(members: Sequence[int]) -> list[str]:
    """What the members at these ports are called; the first three are `MEMBERS`."""
    return [f"m{number}" for number in range(len(members))]


def _names_as_cookies(members: Sequence[int]) -> list[str]:
    return names_of(members)


def _module(name: str) -> Callable[[], bool]:
    return lambda: find_spec(name) is not None


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


@dataclass(frozen=True)
class Peer:
    """One proxy to measure. `write` puts its config into a folder and says how to start it.

    `can` has what it does beyond plain requests: `log`, `tls`, `http2`, `stream`, `websocket`, `failover`,
    `sticky`.
    """

    name: str
    about: str
    installed: Callable[[], bool]
    write: Write
    version: Sequence[str]
    can: frozenset[str] = frozenset()
    cookies: Callable[[Sequence[int]], list[str]] = field(default=_names_as_cookies)

    def command(self, folder: Path, port: int, members: Sequence[int], setting: Setting = PLAIN) -> list[str]:
        """Write the config and return the command that runs it."""
        return self.write(folder, port, members, setting)

    def describe(self) -> str:
        """Its version as it says it."""
        done = subprocess.run(self.version, capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+[\w.+-]*", done.stdout + done.stderr)
        return found[0] if found else "unknown"


def nginx_command(folder: Path, name: str, body: str, workers: int = 1) -> list[str]:
    """Write an nginx config that runs in the foreground, as anybody, and keeps to `folder`.

    No access log unless `body` has one.
    """
    # Without this line nginx started by root drops to a user who cannot read a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{name}-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    off = "" if "access_log " in body else "access_log off;"
    config = folder / f"{name}.conf"
    config.write_text(f"""
{user}
daemon off;
worker_processes {workers};
pid {folder}/{name}.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    {off}
{temporary}
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    tcp_nodelay on;
    server_tokens off;
{body}
}}
""")
    return ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(config)]


def members_command(folder: Path, ports: Sequence[int]) -> list[str]:
    """Every member in one nginx: files, uploads, and the health of a healthy BinderHub."""
    for label, size in (SIZES | ASSETS).items():
        path = folder / label
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    listens = "\n".join(f"        listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    took = f"unix:{folder}/took.sock"
    body = f"""
    default_type application/json;
    open_file_cache max=64;
    sendfile on;
    upstream took {{ server {took}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen {took};
        location / {{ return 200 "taken"; }}
    }}
    server {{
{listens}
        root {folder};
        client_body_buffer_size 128k;
        client_max_body_size 1g;
        location = /health {{ return 200 '{{"ok": true, "checks": []}}'; }}
        location = /versions {{ return 200 '{{"builder_info": {{}}, "binderhub": "1", "builder": "1"}}'; }}
        location /static/ {{ add_header Cache-Control max-age=315360000; if_modified_since before; }}
        location /user/ {{ rewrite ^ /api/repoproviders break; }}
        location /v2/ {{ rewrite ^ /page break; }}
        location ^~ /v2/gh/small/ {{ rewrite ^ /1k break; }}
        # Answers once it has the whole body, as an application would.
        location ~ ^/upload$|^/user/[^/]+/api/contents/ {{
            proxy_pass http://took;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Content-Length "";
            proxy_pass_request_body off;
            proxy_method GET;
        }}
    }}"""
    return nginx_command(folder, "members", body)


_NGINX_LOG = """
    log_format edge escape=json '{"time":"$time_iso8601","request_id":"$request_id","client":"$remote_addr",'
        '"method":"$request_method","host":"$http_host","target":"$request_uri","protocol":"$server_protocol",'
        '"status":$status,"bytes_in":$request_length,"bytes_out":$bytes_sent,"duration":$request_time,'
        '"ttfb":"$upstream_header_time","member":"$upstream_addr","user_agent":"$http_user_agent",'
        '"referer":"$http_referer"}';
    access_log /dev/stdout edge;
"""


def _nginx_peer(folder: Path, port: int, members: Sequence[int], setting: Setting) -> list[str]:
    names = names_of(members)
    addresses = [f"127.0.0.1:{at}" for at in members]
    upstreams = "\n".join(
        f"    upstream {name} {{ server {own}; {_backups(addresses, number)}"
        " keepalive 64; keepalive_requests 1000000000; }"
        for number, (name, own) in enumerate(zip(names, addresses, strict=True))
    )
    shares = " ".join(f"{100 / len(names):.2f}% {name};" for name in names[:-1])
    pins = " ".join(f"{name} {name};" for name in names)
    known = " ".join(f'{name} "";' for name in names)
    hosts = " ".join(f"{name} {address};" for name, address in zip(names, addresses, strict=True))
    http2 = f"listen 127.0.0.1:{port + H2_OFFSET} http2 backlog=4096;" if setting.http2 else ""
    tls = setting.tls and (
        f"listen 127.0.0.1:{port + TLS_OFFSET} ssl{' http2' if setting.http2 else ''} backlog=4096;"
        f" ssl_certificate {setting.tls.chain}; ssl_certificate_key {setting.tls.private_key};"
        " ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:tls:4m;"
    )
    body = f"""
{_NGINX_LOG if setting.log else ""}
{upstreams}
    map_hash_max_size 8192;
    client_body_buffer_size 128k;
    map $request_uri $key {{ ~^(?<repository>/(v2|build)/gh/[^/]+/[^/]+)/ $repository; default $request_id; }}
    split_clients $key $chosen {{ {shares} * {names[-1]}; }}
    map $cookie_{COOKIE} $member {{ {pins} default $chosen; }}
    map $cookie_{COOKIE} $new_cookie {{ {known} default "{COOKIE}=$chosen; Path=/; HttpOnly"; }}
    map $member $member_host {{ {hosts} }}
    map $http_upgrade $connection_upgrade {{ "" ""; default upgrade; }}
    proxy_http_version 1.1;
    proxy_set_header Connection $connection_upgrade;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Host $member_host;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        {tls or ""}
        {http2}
        add_header Set-Cookie $new_cookie;
        location / {{ proxy_pass http://$member; }}
        location /build/ {{ proxy_pass http://$member; proxy_buffering off; }}
    }}"""
    return nginx_command(folder, f"nginx-{port}", body, setting.workers)


def _backups(addresses: Sequence[str], number: int) -> str:
    """The next two after this one take over from it."""
    others = [addresses[(number + step) % len(addresses)] for step in (1, 2)]
    return " ".join(f"server {address} backup;" for address in others)


def _haproxy(folder: Path, port: int, members: Sequence[int], setting: Setting) -> list[str]:
    servers = "\n".join(
        f"    server {name} 127.0.0.1:{at} cookie {name} check inter 15s"
        for name, at in zip(names_of(members), members, strict=True)
    )
    backend = f"""
    balance uri depth 4
    hash-type consistent
    option forwardfor
    option redispatch
    option httpchk GET /health
    http-reuse always
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    cookie {COOKIE} insert indirect nocache httponly
{servers}"""
    tls = (
        setting.tls
        and f"    bind 127.0.0.1:{port + TLS_OFFSET} backlog 4096 ssl crt {setting.tls.together}"
        + (" alpn h2,http/1.1" if setting.http2 else "")
    )
    http2 = f"    bind 127.0.0.1:{port + H2_OFFSET} backlog 4096 proto h2" if setting.http2 else ""
    config = folder / f"haproxy-{port}.cfg"
    config.write_text(f"""
global
    nbthread {setting.workers}
    maxconn 8192
{"    log stdout format raw local0 info" if setting.log else ""}
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout tunnel 600s
frontend edge
    bind 127.0.0.1:{port} backlog 4096
{tls or ""}
{http2}
{_HAPROXY_LOG if setting.log else ""}
    use_backend streams if {{ path_beg /build/ }}
    default_backend members
backend members
{backend}
backend streams
    option http-no-delay
{backend}
""")
    return ["haproxy", "-db", "-f", str(config)]


_HAPROXY_LOG = """
    log global
    http-request capture req.hdr(User-Agent) len 256
    http-request capture req.hdr(Referer) len 256
    http-request capture req.hdr(Host) len 128
    log-format '{"time":"%T","request_id":"%rc.%rt","client":"%ci","method":"%HM",\
"host":"%[capture.req.hdr(2)]","target":"%HU","protocol":"%HV","status":%ST,"bytes_in":%U,"bytes_out":%B,"duration":%Ta,"ttfb":%Tr,\
"member":"%s","termination":"%ts","user_agent":"%[capture.req.hdr(0),json]",\
"referer":"%[capture.req.hdr(1),json]"}'
"""

_CADDY_SECRET = "benchmark"


def _caddy(folder: Path, port: int, members: Sequence[int], setting: Setting) -> list[str]:
    tls = setting.tls and (
        f"https://127.0.0.1:{port + TLS_OFFSET}, https://localhost:{port + TLS_OFFSET} {{\n"
        f"    bind 127.0.0.1\n    tls {setting.tls.chain} {setting.tls.private_key}\n    import edge\n}}\n"
    )
    http2 = "servers {\n        protocols h1 h2 h2c\n    }" if setting.http2 else ""
    clear = f", http://127.0.0.1:{port + H2_OFFSET}" if setting.http2 else ""
    log = "log {\n        output stdout\n        format json\n    }" if setting.log else ""
    upstreams = " ".join(f"127.0.0.1:{at}" for at in members)
    config = folder / f"caddy-{port}.caddyfile"
    config.write_text(f"""{{
    admin off
    auto_https off
    {http2}
    log {{
        level ERROR
        exclude http.log.access
    }}
}}
(edge) {{
    {log}
    reverse_proxy {upstreams} {{
        lb_policy cookie {COOKIE} {_CADDY_SECRET}
        lb_try_duration 5s
        fail_duration 10s
        flush_interval -1
        header_up Host {{upstream_hostport}}
        transport http {{
            keepalive_idle_conns_per_host 64
        }}
    }}
}}
http://127.0.0.1:{port}, http://localhost:{port}{clear} {{
    bind 127.0.0.1
    import edge
}}
{tls or ""}
""")
    home = [f"XDG_DATA_HOME={folder}/caddy", f"XDG_CONFIG_HOME={folder}/caddy", "GOMAXPROCS=1"]
    return ["env", *home, "caddy", "run", "--adapter", "caddyfile", "--config", str(config)]


def _caddy_cookies(members: Sequence[int]) -> list[str]:
    return [
        hmac.new(_CADDY_SECRET.encode(), f"127.0.0.1:{at}".encode(), hashlib.sha256).hexdigest()
        for at in members
    ]


def _chp(_folder: Path, port: int, members: Sequence[int], _setting: Setting) -> list[str]:
    ports = ["--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(port + 1)]
    target = ["--default-target", f"http://127.0.0.1:{members[0]}"]
    return [_CHP, *ports, *target, "--keep-alive-timeout", "600000", "--log-level", "error"]


_CHP = "configurable-http-proxy"
_PROXIES = Path(__file__).with_name("proxies.py")


def _plain_python(which: str) -> Write:
    """A proxy of `benchmarks.proxies`."""

    def write(_folder: Path, port: int, members: Sequence[int], _setting: Setting) -> list[str]:
        return [sys.executable, "-P", str(_PROXIES), which, str(port), *map(str, members)]

    return write


def _fedproxy(folder: Path, port: int, members: Sequence[int], setting: Setting) -> list[str]:
    listen: list[dict[str, object]] = [{"address": f"127.0.0.1:{port}"}]
    if setting.tls:
        files = {"certificate": str(setting.tls.chain), "private_key": str(setting.tls.private_key)}
        listen.append({"address": f"127.0.0.1:{port + TLS_OFFSET}", "tls": files, "http2": setting.http2})
    if setting.http2:
        listen.append({"address": f"127.0.0.1:{port + H2_OFFSET}", "http2": True})
    config = {
        "listen": listen,
        "admin": {"address": f"127.0.0.1:{port + 1}"},
        "workers": setting.workers,
        "access_log": "json" if setting.log else "off",
        "tracing": {
            "endpoint": f"http://127.0.0.1:{members[0]}/upload" if setting.traced else "off",
            "sample": setting.traced,
            "limit": 1_000_000,
        },
        "affinity": {"cookie": COOKIE},
        # All visitors come from one address.
        "limits": {"connections_per_address": 0, "uploads_per_address": 0},
        "timeouts": {"drain": "1s", "keepalive": "600s"},
        "members": {
            name: {"url": f"http://127.0.0.1:{at}", "weight": 1, "prime": number == 0}
            for number, (name, at) in enumerate(zip(names_of(members), members, strict=True))
        },
    }
    path = folder / f"fedproxy-{port}.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "fedproxy", "serve", "--config", str(path)]


COMPILED = Path(__file__).parent.parent / ".compiled"
WITH_COMPILED = ["env", f"PYTHONPATH={COMPILED}", "PYTHONSAFEPATH=1"]


def _compiled(folder: Path, port: int, members: Sequence[int], setting: Setting) -> list[str]:
    """The edge as `make compiled` builds it."""
    return [*WITH_COMPILED, *_fedproxy(folder, port, members, setting)]


_ALL = frozenset({"log", "tls", "http2", "stream", "websocket", "failover", "sticky"})
_VERSION_OF = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"

PEERS = {
    peer.name: peer
    for peer in (
        Peer("nginx", "nginx", _program("nginx"), _nginx_peer, ("nginx", "-v"), _ALL),
        Peer("haproxy", "HAProxy", _program("haproxy"), _haproxy, ("haproxy", "-v"), _ALL),
        Peer(
            "fedproxy",
            "this program",
            _module("fedproxy"),
            _fedproxy,
            (sys.executable, "-m", "fedproxy", "--version"),
            _ALL,
        ),
        Peer(
            "compiled",
            "this program with its hot path compiled (make compiled)",
            (COMPILED / "fedproxy").is_dir,
            _compiled,
            (*WITH_COMPILED, sys.executable, "-m", "fedproxy", "--version"),
            _ALL,
        ),
        Peer("caddy", "Caddy", _program("caddy"), _caddy, ("caddy", "version"), _ALL, _caddy_cookies),
        Peer(
            "chp",
            "configurable-http-proxy (one member, no cookie)",
            _program(_CHP),
            _chp,
            (_CHP, "--version"),
            frozenset({"stream", "websocket"}),
        ),
        Peer(
            "aiohttp",
            "aiohttp's server and client, streaming",
            _module("aiohttp"),
            _plain_python("aiohttp"),
            (sys.executable, "-c", _VERSION_OF, "aiohttp"),
            frozenset({"stream", "websocket", "sticky"}),
        ),
        Peer(
            "tornado",
            "tornado's server and client, buffering: federation-redirect's way",
            _module("tornado"),
            _plain_python("tornado"),
            (sys.executable, "-c", _VERSION_OF, "tornado"),
            frozenset({"sticky"}),
        ),
    )
}
