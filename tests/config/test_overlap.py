"""Two addresses that cannot both be listened on: what is said is what the kernel does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.config.address import Address, overlap
from fedproxy.config.load import parse
from fedproxy.errors import ConfigError

MINIMAL = "members: {a: {url: https://a}}\n"
HOSTS = ["0.0.0.0", "127.0.0.1", "127.0.0.2", "::", "::1"]


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(MINIMAL + text, {})
    return [f"{fault.path}: {fault.message}" for fault in caught.value.faults]


def _listen(address: Address) -> socket.socket:
    """As the edge does, outside of a group. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.host == "::" else 1)
        sock.bind((address.host, address.port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


def _both(one: str, other: str) -> bool:
    """Whether both can be listened on at some port."""
    with _listen(Address(one, 0)) as sock:
        try:
            _listen(Address(other, sock.getsockname()[1])).close()
        except OSError:
            return False
    return True


@pytest.mark.parametrize("one", HOSTS)
@pytest.mark.parametrize("other", HOSTS)
def test_addresses_collide_as_the_kernel_has_it(one: str, other: str) -> None:
    # Somebody else on this machine may have one port of the other address, but not each.
    can = any(_both(one, other) for _ in range(8))
    assert overlap(Address(one, 1), Address(other, 1)) is not can


ADDRESSES = st.builds(Address, st.sampled_from([*HOSTS, "localhost", "a.example"]), st.integers(0, 2))


@given(ADDRESSES, ADDRESSES)
def test_order_does_not_matter_and_another_port_or_any_free_one_never_collides(
    one: Address, other: Address
) -> None:
    assert overlap(one, other) is overlap(other, one)
    assert not (overlap(one, other) and (one.port != other.port or one.port == 0))
    assert overlap(one, one) is (one.port != 0)


@pytest.mark.parametrize(
    ("one", "other", "collide"),
    [
        ("localhost:80", "127.0.0.1:80", True),
        ("localhost.:80", "LOCALHOST:80", True),
        ("localhost:80", "127.0.0.2:80", False),
        ("a.example:80", "0.0.0.0:80", True),
        ("a.example:80", "[::]:80", True),
        ("a.example:80", "[::1]:80", False),
        ("a.example:80", "b.example:80", False),
        ("unix:/run/a", "unix:/run/./a", True),
        ("unix:/run/a", "unix:/run/b", False),
        ("unix:/run/a", "0.0.0.0:80", False),
    ],
)
def test_listeners_that_collide_are_refused(one: str, other: str, collide: bool) -> None:
    both = f"listen: [{{address: '{one}'}}, {{address: '{other}'}}]"
    beside = f"listen: [{{address: '{one}'}}]\nadmin: {{address: '{other}'}}"
    if collide:
        (fault,) = faults(both)
        assert fault.startswith("listen.1.address: is ")
        assert "which listen.0.address" in fault
        (fault,) = faults(beside)
        assert fault.startswith("listen.0.address: is ")
        assert "which admin.address" in fault
    else:
        parse(MINIMAL + both, {})
        parse(MINIMAL + beside, {})


def test_unix_socket_is_the_same_by_another_way(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (fault,) = faults(f"listen: [{{address: 'unix:{tmp_path}/s'}}, {{address: 'unix:{tmp_path}/link/s'}}]")
    assert fault == (
        f"listen.1.address: is 'unix:{tmp_path}/link/s', which listen.0.address (unix:{tmp_path}/s) "
        "already uses, expected an address of its own"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("admin: {address: '0.0.0.0:8080'}", "admin.address: is '0.0.0.0:8080', which listen.0.address uses"),
        (
            "admin: {address: 'localhost:8080'}",
            "admin.address: is 'localhost:8080', which listen.0.address (0.0.",
        ),
        (
            "admin: {address: '[::]:8080'}\nlisten:",
            "admin.address: is '[::]:8080', which listen.0.address (0.0.0.0",
        ),
        (
            "listen: [{address: '0.0.0.0:8081'}]\nadmin: {token: abc}",
            "listen.0.address: is '0.0.0.0:8081', which admin.address (127.0.0.1:8081) uses by default",
        ),
        (
            "listen: [{address: '[::]:8081'}]\nadmin:",
            "listen.0.address: is '[::]:8081', which admin.address (127",
        ),
    ],
)
def test_default_collides_too_and_what_the_file_says_is_the_fault(text: str, expected: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith(expected)


def test_collision_is_found_beside_other_faults() -> None:
    text = "listen: [{address: 'a:1'}, {address: 5}, {address: 'a:1'}]\nadmin: {address: 'a:1', token: 5}"
    assert [fault.partition(":")[0] for fault in faults(text)] == [
        "listen.1.address",
        "listen.2.address",
        "admin.token",
    ]
