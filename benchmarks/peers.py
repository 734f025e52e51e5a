"""What is measured and what it stands in front of: processes on loopback, each on a core of its own."""

from __future__ import annotations

import contextlib
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
from dataclasses import dataclass
from pathlib import Path

import yaml

MEMBERS = ("m0", "m1", "m2")
COOKIE = "fedproxy_member"
SIZES = {"1k": 1024, "64k": 65536}

_TICK = 1_000_000 / os.sysconf("SC_CLK_TCK")


class BenchmarkError(Exception):
    """The benchmark cannot run as asked; the message says why to the person who asked."""


@dataclass(frozen=True)
class Cpu:
    """Processor time in microseconds."""

    user: float
    kernel: float

    def since(self, earlier: Cpu) -> Cpu:
        """What was used between `earlier` and this."""
        return Cpu(self.user - earlier.user, self.kernel - earlier.kernel)


class Process:
    """A program pinned on one core, in a session of its own so that Ctrl-C reaches only the benchmark."""

    def __init__(self, name: str, command: Sequence[str], *, core: int, folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"<Process {self.name} pid={self._popen.pid} returncode={self._popen.returncode}>"

    @property
    def pid(self) -> int:
        """Its number."""
        return self._popen.pid

    def cpu(self) -> Cpu:
        """What the process and all its descendants have used so far."""
        ticks = [0, 0]
        for pid in self._family():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                ticks[0] += int(fields[11]) + int(fields[13])
                ticks[1] += int(fields[12]) + int(fields[14])
        return Cpu(ticks[0] * _TICK, ticks[1] * _TICK)

    def wait_ready(self, port: int, path: str, within: float = 15.0) -> None:
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
            time.sleep(0.05)
        raise BenchmarkError(f"{self.name} was not ready in {within:.0f} s ({last}): {self._last_words()}")

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
        """The process and its descendants: number -> start time."""
        parents, started = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = _stat(int(entry.name))
                    parents[int(entry.name)] = int(fields[1])
                    started[int(entry.name)] = fields[19]
        family = {self._popen.pid}
        while grown := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= grown
        return {pid: started[pid] for pid in family if pid in started}

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


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
class Peer:
    """One proxy to measure. `command` writes its config into a folder and says how to start it."""

    name: str
    program: str
    command: Callable[[Path, int, Sequence[int]], list[str]]
    version: tuple[str, ...]

    def installed(self) -> bool:
        """Whether its program can be found."""
        return shutil.which(self.program) is not None

    def describe(self) -> str:
        """Its version as it says it."""
        done = subprocess.run(self.version, capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+[\w.+-]*", done.stdout + done.stderr)
        return found[0] if found else "unknown"


def nginx_command(folder: Path, name: str, body: str) -> list[str]:
    """Write an nginx config that runs in the foreground, as anybody, and keeps to `folder`."""
    # Without this line nginx started by root drops to a user who cannot read a temporary folder.
    user = "user root;" if os.geteuid() == 0 else ""
    temporary = "\n".join(
        f"    {kind}_temp_path {folder}/{name}-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / f"{name}.conf"
    config.write_text(f"""
{user}
daemon off;
worker_processes 1;
pid {folder}/{name}.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
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
    """Every member in one nginx: a static file per size, and the health of a BinderHub that is well."""
    for label, size in SIZES.items():
        (folder / label).write_bytes(b"x" * size)
    servers = "\n".join(
        f"""    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {folder};
        location = /health {{ return 200 '{{"ok": true, "checks": []}}'; }}
        location = /versions {{ return 200 '{{"builder_info": {{}}, "binderhub": "1", "builder": "1"}}'; }}
    }}"""
        for port in ports
    )
    body = f"    default_type application/json;\n    open_file_cache max=16;\n    sendfile on;\n{servers}"
    return nginx_command(folder, "members", body)


def _nginx_peer(folder: Path, port: int, members: Sequence[int]) -> list[str]:
    named = list(zip(MEMBERS, members, strict=True))
    upstreams = "\n".join(
        f"    upstream {name} {{ server 127.0.0.1:{at}; keepalive 64; keepalive_requests 1000000000; }}"
        for name, at in named
    )
    pins = " ".join(f"{name} {name};" for name in MEMBERS)
    known = " ".join(f'{name} "";' for name in MEMBERS)
    hosts = " ".join(f"{name} 127.0.0.1:{at};" for name, at in named)
    body = f"""
{upstreams}
    split_clients $request_id $chosen {{ 33.3% m0; 33.3% m1; * m2; }}
    map $cookie_{COOKIE} $member {{ {pins} default $chosen; }}
    map $cookie_{COOKIE} $new_cookie {{ {known} default "{COOKIE}=$chosen; Path=/; HttpOnly"; }}
    map $member $member_host {{ {hosts} }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://$member;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $member_host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            add_header Set-Cookie $new_cookie;
        }}
    }}"""
    return nginx_command(folder, "nginx", body)


def _haproxy(folder: Path, port: int, members: Sequence[int]) -> list[str]:
    servers = "\n".join(
        f"    server {name} 127.0.0.1:{at} cookie {name}" for name, at in zip(MEMBERS, members, strict=True)
    )
    config = folder / "haproxy.cfg"
    config.write_text(f"""
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend edge
    bind 127.0.0.1:{port} backlog 4096
    default_backend members
backend members
    balance roundrobin
    option forwardfor
    http-reuse always
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    cookie {COOKIE} insert indirect nocache httponly
{servers}
""")
    return ["haproxy", "-db", "-f", str(config)]


def _fedproxy(folder: Path, port: int, members: Sequence[int]) -> list[str]:
    config = {
        "listen": [{"address": f"127.0.0.1:{port}"}],
        "admin": {"address": f"127.0.0.1:{port + 1}"},
        "workers": 1,
        "access_log": "off",
        "affinity": {"cookie": COOKIE},
        "timeouts": {"drain": "1s"},
        "members": {
            name: {"url": f"http://127.0.0.1:{at}", "weight": 1, "prime": name == MEMBERS[0]}
            for name, at in zip(MEMBERS, members, strict=True)
        },
    }
    path = folder / "fedproxy.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "fedproxy", "serve", "--config", str(path)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("nginx", "nginx", _nginx_peer, ("nginx", "-v")),
        Peer("haproxy", "haproxy", _haproxy, ("haproxy", "-v")),
        Peer("fedproxy", sys.executable, _fedproxy, (sys.executable, "-m", "fedproxy", "--version")),
    )
}
