"""HTTP/2 as machines (RFC 9113, RFC 7541): bytes in, events out, bytes to send. No loop, no clock."""
