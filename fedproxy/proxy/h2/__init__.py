"""HTTP/2 on the loop: bytes in and out, nothing decided. The protocol itself is in `wire.h2`."""
