"""Pure HTTP/1.1: bytes in, what we know and bytes to forward out."""
