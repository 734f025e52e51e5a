"""The Huffman code, beside another implementation of it."""

from __future__ import annotations

import pytest
from hpack.exceptions import HPACKDecodingError
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedproxy.errors import CompressionFailed
from fedproxy.wire.h2.huffman import codes, decode

THEIRS = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
EOS = 0x3FFFFFFF, 30


def bits(*each: tuple[int, int]) -> bytes:
    """Codes, one after the other, without padding: they have to fill whole bytes."""
    whole = "".join(format(code, f"0{size}b") for code, size in each if size)
    assert not len(whole) % 8
    return int("1" + whole, 2).to_bytes(len(whole) // 8 + 1, "big")[1:]


def padded(data: bytes, with_bit: str = "1", more: int = 0) -> bytes:
    """The text, encoded by the definition."""
    whole = "".join(format(code, f"0{size}b") for code, size in map(codes().__getitem__, data))
    whole += with_bit * (-len(whole) % 8 + 8 * more)
    return int("1" + whole, 2).to_bytes(len(whole) // 8 + 1, "big")[1:]


def test_every_code_is_that_of_the_standard() -> None:
    assert codes() == {symbol: (REQUEST_CODES[symbol], REQUEST_CODES_LENGTH[symbol]) for symbol in range(256)}


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ("f1e3c2e5f23a6ba0ab90f4ff", b"www.example.com"),
        ("a8eb10649cbf", b"no-cache"),
        ("25a849e95ba97d7f", b"custom-key"),
        ("25a849e95bb8e8b4bf", b"custom-value"),
        ("6402", b"302"),
        ("aec3771a4b", b"private"),
        ("d07abe941054d444a8200595040b8166e082a62d1bff", b"Mon, 21 Oct 2013 20:13:21 GMT"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", b"https://www.example.com"),
        ("", b""),
    ],
)
def test_examples_of_the_standard(encoded: str, text: bytes) -> None:
    """RFC 7541 appendix C."""
    assert decode(bytes.fromhex(encoded)) == text


@given(st.binary(max_size=300))
@example(bytes(range(256)))
@example(b"x" * 9000)  # longer than what is remembered
def test_any_text_comes_back(text: bytes) -> None:
    assert decode(padded(text)) == text
    assert decode(THEIRS.encode(text)) == text


def verdict(data: bytes) -> tuple[bytes | None, bytes | None]:
    try:
        ours: bytes | None = decode(data)
    except CompressionFailed:
        ours = None
    try:
        theirs: bytes | None = decode_huffman(data)
    except HPACKDecodingError:
        theirs = None
    return ours, theirs


@settings(max_examples=100)
@given(st.binary(max_size=40) | st.lists(st.sampled_from((0xFF, 0xFE, 0x7F, 0, 0xF8)), max_size=8).map(bytes))
def test_what_others_accept_or_refuse_is_accepted_or_refused(data: bytes) -> None:
    ours, theirs = verdict(data)
    assert ours == theirs


def test_every_two_bytes_mean_what_they_mean_to_others() -> None:
    for value in range(1 << 16):
        ours, theirs = verdict(value.to_bytes(2, "big"))
        assert ours == theirs


@pytest.mark.parametrize(
    "data",
    [
        padded(b"0", "0"),  # padding that is not ones
        padded(b"0", more=1),  # a whole byte of padding, or more
        padded(b"01234567", more=1),
        b"\xff",
        b"\xff\xff\xff\xff",
        bits(codes()[0x30], EOS, codes()[0x61]),  # the end-of-string symbol
        bits(codes()[0x61], codes()[0x62], EOS, (0x7F, 7)),
        b"\xfe",  # a code that is not whole
    ],
)
def test_what_is_no_text_is_refused(data: bytes) -> None:
    """RFC 7541 section 5.2: at most seven bits of padding, all ones; and no end-of-string symbol."""
    with pytest.raises(CompressionFailed):
        decode(data)


@pytest.mark.parametrize("size", range(8))
def test_up_to_seven_ones_are_padding(size: int) -> None:
    text = next(
        bytes((a, b)) for a in codes() for b in codes() if (codes()[a][1] + codes()[b][1] + size) % 8 == 0
    )
    assert decode(bits(*(codes()[each] for each in text), ((1 << size) - 1, size))) == text
