"""What the edge refuses, in words for operators."""

from __future__ import annotations

from typing import Final

#: By the reason in `fedproxy_rejected_total`.
_WORDS: Final = {
    "address": "one address had too many connections",
    "banned": "banned",
    "body_timeout": "the body stopped arriving",
    "body_too_large": "the body was too large",
    "connections": "too many connections",
    "descriptors": "the edge had no file descriptor left for a member",
    "drain": "the edge was shutting down",
    "full": "every member that could serve it was full",
    "head_timeout": "the head was not complete in time",
    "head_too_large": "the header fields were too large",
    "http2_empty_frames": "HTTP/2: too many empty frames",
    "http2_head": "HTTP/2: the header fields were too large",
    "http2_pings": "HTTP/2: too many pings",
    "http2_priorities": "HTTP/2: too many changes of priority",
    "http2_resets": "HTTP/2: too many streams reset",
    "http2_settings": "HTTP/2: too many changes of settings",
    "http2_unknown_frames": "HTTP/2: too many unknown frames",
    "http2_window_updates": "HTTP/2: too many window updates",
    "malformed": "malformed",
    "memory": "the edge had no memory for a connection to a member",
    "method": "a method that is not allowed",
    "network": "the edge had no route to the member",
    "no_member": "no member was available, or the session's member was in maintenance",
    "ports": "the edge had no local port left for a member",
    "protocol": "a protocol that is not known",
    "proxy_protocol": "no valid PROXY header",
    "rate": "one address launched too much",
    "resolver": "the edge could not resolve the member's name",
    "session_gone": "the session had ended, or its member had left",
    "target_too_long": "the target was too long",
    "uploads": "one address had too many uploads under way",
    "uploads_full": "the member had too many uploads under way",
}
#: Those for which neither a visitor nor an operator's rule is the cause: visitors in good order get an error.
_GRAVE: Final = frozenset(
    (
        *("connections", "descriptors", "full", "memory", "network", "no_member"),
        *("ports", "resolver", "uploads_full"),
    )
)


def describe_refusal(reason: str) -> str:
    """Why a request or a connection was refused."""
    return _WORDS.get(reason, reason.replace("_", " "))


def is_grave(reason: str) -> bool:
    """Whether a refusal is a fault of the federation or of the edge."""
    return reason in _GRAVE
