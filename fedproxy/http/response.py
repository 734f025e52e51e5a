"""A whole response, as a fact: each protocol renders it in its own way."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

Field = tuple[bytes, bytes]
"""A name and a value."""

PHRASES: Final[dict[int, str]] = {status.value: status.phrase for status in HTTPStatus}
"""The reason phrase of each registered status (RFC 9110 section 15)."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response that is made here. `content_type` is empty if it has no content.

    fields: in their order, without those that describe the content's type and length or the connection.
    """

    status: int
    content_type: bytes = b""
    body: bytes = b""
    fields: tuple[Field, ...] = ()
