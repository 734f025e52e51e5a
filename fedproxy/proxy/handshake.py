"""Handshakes of a listener that does TLS itself, counted from their beginning."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedproxy.proxy.context import Context


def handshakes(context: Context) -> type[ssl.SSLObject]:
    """What a TLS context makes of a handshake where the listener does TLS itself.

    The loop tells of such a connection only once it is encrypted. Until then it is counted here, and one too
    many is refused before anything is computed for it.
    """

    class Handshake(ssl.SSLObject):
        counted = False

        def do_handshake(self) -> None:
            if not self.counted:
                self.counted = True
                if not context.admission.enter():
                    raise ssl.SSLError("one connection too many")
            super().do_handshake()
            self._leave()

        def __del__(self) -> None:
            # A handshake that comes to nothing ends with its connection, and nobody is told.
            self._leave()

        def _leave(self) -> None:
            if self.counted:
                self.counted = False
                context.admission.leave()

    return Handshake
