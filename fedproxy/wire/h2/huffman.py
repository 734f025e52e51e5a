"""HPACK's Huffman code (RFC 7541 section 5.2 and appendix B).

Only decoding: what the edge sends is not compressed, because that would cost more than it saves.
"""

from __future__ import annotations

from typing import Final

from fedproxy.bounded import Memo
from fedproxy.errors import CompressionFailed

# Appendix B. The code is canonical: codes of one length follow each other in the order of their symbols, so
# the lengths say all. Only the end-of-string symbol is not here; its 30 bits are all ones.
_BY_LENGTH: Final = (
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b'!"()?'),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\x00$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, b"\\\xc3\xd0"),
    (20, b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2"),
    (21, b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6"),
    (
        22,
        b"\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9",
    ),
    (
        23,
        b"\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf"
        b"\xc5\xe7\xef",
    ),
    (24, b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed"),
    (25, b"\xc7\xcf\xea\xeb"),
    (26, b"\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\xf2\xf3\xff"),
    (27, b"\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe"),
    (
        28,
        b"\x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f"
        b"\x7f\xdc\xf9",
    ),
    (30, b"\n\r\x16"),
)

# What a step of four bits comes to: the next state in the lowest byte, and these.
_MAY_END: Final = 1 << 8  # what was read of the next code is padding, if nothing follows
_EMITS: Final = 1 << 9  # a symbol is complete: the bits from `_SYMBOL` on
_SYMBOL: Final = 10
_NEVER: Final = -1  # the end-of-string symbol


def codes() -> dict[int, tuple[int, int]]:
    """Symbol -> its code and the number of bits of that."""
    found = {}
    code, size = 0, 0
    for length, symbols in _BY_LENGTH:
        code <<= length - size
        size = length
        for symbol in symbols:
            found[symbol] = code, size
            code += 1
    return found


def _make_steps() -> list[int]:
    """For each state, which is an inner node of the code's tree, and each four bits what they come to."""
    # A node: what its two branches lead to; a symbol is the negative of one more than itself.
    nodes: list[list[int | None]] = [[None, None]]
    padding = {0}
    for symbol, (code, size) in codes().items():
        at = 0
        for bit in range(size - 1, 0, -1):
            branch = code >> bit & 1
            following = nodes[at][branch]
            if following is None:
                following = nodes[at][branch] = len(nodes)
                nodes.append([None, None])
                # Section 5.2: at most seven bits, all ones.
                if size - bit <= 7 and code >> bit == (1 << size - bit) - 1:
                    padding.add(following)
            at = following
        nodes[at][code & 1] = -1 - symbol
    steps = []
    for state in range(len(nodes)):
        for nibble in range(16):
            at, emitted = state, 0
            for bit in (3, 2, 1, 0):
                following = nodes[at][nibble >> bit & 1]
                if following is None:
                    at = _NEVER
                    break
                if following < 0:
                    emitted = _EMITS | (-1 - following) << _SYMBOL
                    following = 0
                at = following
            steps.append(at if at == _NEVER else at | emitted | (_MAY_END if at in padding else 0))
    return steps


_STEPS: Final = _make_steps()


def _decode(data: bytes) -> bytes:
    steps = _STEPS
    out: list[int] = []
    step = _MAY_END
    for byte in data:
        for nibble in (byte >> 4, byte & 15):
            step = steps[(step & 255) << 4 | nibble]
            if step & _EMITS:
                if step == _NEVER:
                    raise CompressionFailed
                out.append(step >> _SYMBOL)
    if not step & _MAY_END:
        raise CompressionFailed
    return bytes(out)


# Cookies are long, and come with every request.
_decoded: Final = Memo(_decode, entries=512, longest=4096)


def decode(data: bytes) -> bytes:
    """The text that was encoded. Raises `CompressionFailed`."""
    return _decoded[data]
