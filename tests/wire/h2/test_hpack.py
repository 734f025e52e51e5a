"""How heads are compressed: the examples of the standard, and the verdicts of another implementation."""

from __future__ import annotations

import hpack
import pytest
from hpack.hpack import encode_integer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedproxy.errors import CompressionFailed
from fedproxy.wire.h2.hpack import (
    AUTHORITY,
    COOKIE,
    HOST,
    KEY,
    MALFORMED,
    METHOD,
    NO_TABLE,
    PATH,
    PLAIN,
    PROTOCOL,
    SCHEME,
    TABLE_SIZE,
    Decoder,
    HeaderField,
    encode_lines,
    encode_status,
    literal,
    literal_name,
)
from tests.wire.h2.owner import plain

MOST = 1 << 20
FIRST = 62  # the index of the dynamic table's newest entry
Pairs = list[tuple[bytes, bytes]]


def pairs(fields: list[HeaderField]) -> Pairs:
    return [(field.name, field.value) for field in fields]


def read(decoder: Decoder, block: bytes) -> Pairs | None:
    """None if it is refused."""
    try:
        return pairs(decoder.decode(block, MOST))
    except CompressionFailed:
        return None


def integer(first: int, bits: int, value: int) -> bytes:
    coded = encode_integer(value, bits)
    coded[0] |= first
    return bytes(coded)


def table(decoder: Decoder) -> Pairs:
    """The dynamic table, the newest first."""
    found: Pairs = []
    while (field := read(decoder, integer(0x80, 7, FIRST + len(found)))) is not None:
        found += field
    return found


def text(lines: str) -> Pairs:
    """`name: value` in each line."""
    found = []
    for line in lines.strip().splitlines():
        name, _, value = line.strip()[1:].partition(": ")
        found.append((line.strip()[:1].encode() + name.encode(), value.encode()))
    return found


# RFC 7541 appendix C

GET_PLAIN = ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com"
GET_NO_CACHE = GET_PLAIN + "\ncache-control: no-cache"
GET_CUSTOM = (
    ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value"
)
DATES = "Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT"
SERVED = "cache-control: private\ndate: {}\nlocation: https://www.example.com"
COOKIES = "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"
RESPONSES = [
    ":status: 302\n" + SERVED.format(DATES[0]),
    ":status: 307\n" + SERVED.format(DATES[0]),
    f":status: 200\n{SERVED.format(DATES[1])}\ncontent-encoding: gzip\nset-cookie: {COOKIES}",
]
RESPONSE_TABLES = [
    f"location: https://www.example.com\ndate: {DATES[0]}\ncache-control: private\n:status: 302",
    f":status: 307\nlocation: https://www.example.com\ndate: {DATES[0]}\ncache-control: private",
    f"set-cookie: {COOKIES}\ncontent-encoding: gzip\ndate: {DATES[1]}",
]
REQUEST_TABLES = [
    ":authority: www.example.com",
    "cache-control: no-cache\n:authority: www.example.com",
    "custom-key: custom-value\ncache-control: no-cache\n:authority: www.example.com",
]


@pytest.mark.parametrize(
    ("block", "said", "kept"),
    [
        (
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            "custom-key: custom-header",
            "custom-key: custom-header",
        ),
        ("040c2f73616d706c652f70617468", ":path: /sample/path", ""),
        ("100870617373776f726406736563726574", "password: secret", ""),
        ("82", ":method: GET", ""),
    ],
)
def test_examples_of_representations(block: str, said: str, kept: str) -> None:
    """Appendix C.2."""
    decoder = Decoder()
    assert pairs(decoder.decode(bytes.fromhex(block), MOST)) == text(said)
    assert decoder.changed == bool(kept)
    assert table(decoder) == text(kept)


@pytest.mark.parametrize(
    ("blocks", "said", "tables", "size"),
    [
        (
            [
                "828684410f7777772e6578616d706c652e636f6d",
                "828684be58086e6f2d6361636865",
                "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
            ],
            [GET_PLAIN, GET_NO_CACHE, GET_CUSTOM],
            REQUEST_TABLES,
            None,
        ),
        (
            [
                "828684418cf1e3c2e5f23a6ba0ab90f4ff",
                "828684be5886a8eb10649cbf",
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
            ],
            [GET_PLAIN, GET_NO_CACHE, GET_CUSTOM],
            REQUEST_TABLES,
            None,
        ),
        (
            [
                "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e"
                "1768747470733a2f2f7777772e6578616d706c652e636f6d",
                "4803333037c1c0bf",
                "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d"
                "4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b20766572"
                "73696f6e3d31",
            ],
            RESPONSES,
            RESPONSE_TABLES,
            256,
        ),
        (
            [
                "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b"
                "97c8e9ae82ae43d3",
                "4883640effc1c0bf",
                "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdf"
                "cd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
            ],
            RESPONSES,
            RESPONSE_TABLES,
            256,
        ),
    ],
    ids=["C.3", "C.4", "C.5", "C.6"],
)
def test_examples_of_heads_that_follow_each_other(
    blocks: list[str], said: list[str], tables: list[str], size: int | None
) -> None:
    decoder = Decoder()
    resize = b"" if size is None else integer(0x20, 5, size)
    for block, fields, kept in zip(blocks, said, tables, strict=True):
        assert pairs(decoder.decode(resize + bytes.fromhex(block), MOST)) == text(fields)
        assert decoder.size == sum(len(name) + len(value) + 32 for name, value in text(fields))
        assert table(decoder) == text(kept)
        resize = b""


@pytest.mark.parametrize(("value", "coded"), [(10, "0a"), (31, "1f00"), (1337, "1f9a0a")])
def test_examples_of_integers(value: int, coded: str) -> None:
    """Appendix C.1, as the sizes of a table; and as what is made here, with another prefix."""
    assert read(Decoder(), bytes((0x20 | int(coded[:2], 16),)) + bytes.fromhex(coded[2:])) == []
    made = literal(b"x", b"y" * value)
    assert made == b"\0\1x" + integer(0, 7, value) + b"y" * value


# The same as another implementation


class Strict(hpack.Decoder):
    """Theirs, and more strict where the edge is: see the two tests of these differences below."""

    _resized = 0

    def decode(self, data: bytes, raw: bool = False) -> list[hpack.HeaderTuple]:
        self._resized = 0
        return list(super().decode(data, raw))

    def _update_encoding_context(self, data: bytes | memoryview) -> int:
        self._resized += 1
        if self._resized > 2:
            raise hpack.HPACKDecodingError
        return super()._update_encoding_context(data)


def theirs(decoder: hpack.Decoder, block: bytes) -> Pairs | None:
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        return None


def same(blocks: list[bytes]) -> None:
    """The same verdicts, the same fields, and the same table after each of the blocks."""
    ours, witness = Decoder(), Strict(max_header_list_size=MOST)
    for block in blocks:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("hpack.hpack.VARINT_MAX_LENGTH", 4)
            found, expected = read(ours, block), theirs(witness, block)
        assert found == expected
        if found is None:
            return
        size = sum(len(name) + len(value) + 32 for name, value in found)
        assert ours.size == size
        assert table(ours) == [tuple(map(bytes, each)) for each in witness.header_table.dynamic_entries]


NAMES = st.sampled_from(
    [b":method", b":path", b"accept", b"cookie", b"x", b"x-long-" + b"n" * 200, b"A", b"", b"user-agent"]
) | st.binary(max_size=6)
VALUES = st.sampled_from([b"GET", b"/", b"", b"gzip, deflate", b"v" * 130, b"v" * 4100]) | st.binary(
    max_size=8
)
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=8)
# Theirs forgets to say a size that is set twice.
SIZES = st.lists(st.sampled_from([0, 40, 100, 300, 4000, 4096]), max_size=2, unique=True)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(FIELDS, st.booleans(), SIZES),
        max_size=5,
    )
)
def test_what_another_encoder_makes_is_read(
    heads: list[tuple[list[tuple[bytes, bytes, bool]], bool, list[int]]],
) -> None:
    encoder = hpack.Encoder()
    decoder, blocks = Decoder(), []
    for fields, huffman, sizes in heads:
        for size in sizes:
            encoder.header_table_size = size
        block = encoder.encode(
            [hpack.HeaderTuple(*each[:2]) if not each[2] else each for each in fields], huffman
        )
        blocks.append(block)
        assert read(decoder, block) == [(name, value) for name, value, _ in fields]
    same(blocks)


INSTRUCTION = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.builds(integer, st.just(0x80), st.just(7), st.integers(0, 70)),
    st.builds(integer, st.just(0x20), st.just(5), st.sampled_from([0, 33, 64, 100, 4096, 4097, 1 << 20])),
    st.builds(
        lambda first, bits, index, value: integer(first, bits, index) + integer(0, 7, len(value)) + value,
        st.just(0x40),
        st.just(6),
        st.integers(1, 66),
        st.binary(max_size=40),
    ),
    st.builds(
        lambda first, name, value: (
            bytes((first,)) + integer(0, 7, len(name)) + name + integer(0, 7, len(value)) + value
        ),
        st.sampled_from([0x40, 0, 0x10]),
        st.binary(max_size=5),
        st.sampled_from([b"", b"v", b"v" * 127, b"w" * 600, b"w" * 4060]),
    ),
    st.builds(
        lambda first, name, value: (
            bytes((first, 0x80 | len(name))) + name + bytes((0x80 | len(value),)) + value
        ),
        st.sampled_from([0x40, 0, 0x10]),
        st.binary(max_size=3),
        st.binary(max_size=3),
    ),
    # Integers that are too long, or have zeros in front.
    st.builds(
        lambda first, count, last: first + b"\x80" * count + last,
        st.sampled_from([b"\xff", b"\x3f", b"\x7f", b"\x0f", b"\0\x7f"]),
        st.integers(0, 3),
        st.sampled_from([b"\0", b"\1", b""]),
    ),
)


@settings(max_examples=100)
@given(st.lists(st.lists(INSTRUCTION, max_size=5).map(b"".join), max_size=5))
@example([b"\x20\x3f\xe1\x1f\x20"])
@example([b"\x82\x20"])
@example([b"\x40\x01x\x01y", b"\xbe", b"\x20\xbe"])
def test_what_others_accept_or_refuse_is_accepted_or_refused(blocks: list[bytes]) -> None:
    same(blocks)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=24), max_size=4))
def test_any_bytes_mean_what_they_mean_to_others(blocks: list[bytes]) -> None:
    same(blocks)


def test_table_is_resized_at_most_twice_before_a_head() -> None:
    """RFC 7541 section 4.2: an encoder says the smallest size that there was, and the final one. Others
    accept any number of these; who sends more only wants them to be worked on."""
    twice, thrice = b"\x20\x3f\xe1\x1f", b"\x20\x20\x20"
    assert (read(Decoder(), twice), read(Decoder(), thrice)) == ([], None)
    assert theirs(hpack.Decoder(), thrice) == []


@pytest.mark.parametrize(
    ("first", "rest"),
    [(b"\x3f", b""), (b"\0\x7f", b"n" * 127 + b"\0"), (b"\0\1x\x7f", b"v" * 127)],
)
def test_no_integer_has_more_than_four_bytes_after_its_prefix(first: bytes, rest: bytes) -> None:
    """RFC 7541 section 5.1 leaves the limit to the decoder; that of others is one byte more. No number that
    is within the other limits needs it: what has more has zeros in front, or is refused anyway."""
    four, five = (first + b"\x80" * more + b"\0" + rest for more in (3, 4))
    assert read(Decoder(), four) == theirs(hpack.Decoder(), four)
    assert read(Decoder(), four) is not None
    assert read(Decoder(), five) is None
    assert theirs(hpack.Decoder(), five) is not None


# What a field is


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        (b":method", b"GET", METHOD),
        (b":scheme", b"https", SCHEME),
        (b":authority", b"hub:80", AUTHORITY),
        (b":path", b"/a?b", PATH),
        (b":path", b"", PATH),  # it is said, and refused where it is needed
        (b":protocol", b"websocket", PROTOCOL),
        (b"cookie", b"a=b", COOKIE),
        (b"host", b"hub", HOST),
        (b"sec-websocket-key", b"x", KEY),
        (b"accept", b"*/*", PLAIN),
        (b"accept", b"", PLAIN),
        (b"x", b"a: b", PLAIN),
        (b"x", b"\xff\t\x80", PLAIN),
        (b"te", b"trailers", PLAIN),
        (b"te", b"Trailers", PLAIN),
        (b"te", b"gzip", MALFORMED),
        (b":status", b"200", MALFORMED),
        (b":unknown", b"x", MALFORMED),
        (b":", b"x", MALFORMED),
        (b":path", b"/a b", MALFORMED),
        (b":path", b"/\x80", MALFORMED),
        (b":path", b"/\r\n", MALFORMED),
        (b":Path", b"/", MALFORMED),
        (b"connection", b"close", MALFORMED),
        (b"proxy-connection", b"close", MALFORMED),
        (b"keep-alive", b"x", MALFORMED),
        (b"transfer-encoding", b"chunked", MALFORMED),
        (b"upgrade", b"h2c", MALFORMED),
        (b"Accept", b"*/*", MALFORMED),
        (b"", b"x", MALFORMED),
        (b"a b", b"x", MALFORMED),
        (b"a:", b"x", MALFORMED),
        (b"a: b", b"x", MALFORMED),
        (b"a\r\nb", b"x", MALFORMED),
        (b"\xe9", b"x", MALFORMED),
        (b"x", b" a", MALFORMED),
        (b"x", b"a\t", MALFORMED),
        (b"x", b"a\0b", MALFORMED),
        (b"x", b"a\rb", MALFORMED),
        (b"x", b"a\nb", MALFORMED),
        (b"x", b"a\r\nhost: evil", MALFORMED),
        (b"x", b"\x7f", MALFORMED),
    ],
)
@pytest.mark.parametrize("first", [b"\0", b"\x10", b"\x40"])
def test_kind_of_a_field(name: bytes, value: bytes, kind: int, first: bytes) -> None:
    """RFC 9113 sections 8.2 and 8.3."""
    block = first + plain([(name, value)])[1:]
    decoder = Decoder()
    for again in range(2):
        (field,) = decoder.decode(block, MOST)
        assert (field.name, field.value, field.kind) == (name, value, kind), again
    if kind <= KEY:
        assert field.line == b"%b: %b\r\n" % (name, value)


TRICKY = st.text(alphabet=[":", " ", "a", "B", "\r", "\n", "\0", "é"], max_size=5).map(
    lambda each: each.encode("latin-1")
)


@settings(max_examples=100)
@given(TRICKY, TRICKY, st.sampled_from([b"\0", b"\x40"]))
def test_no_field_is_taken_for_another(name: bytes, value: bytes, first: bytes) -> None:
    """A line that could be read in two ways is remembered under one of them only."""
    (field,) = Decoder().decode(first + plain([(name, value)])[1:], MOST)
    assert (field.name, field.value) == (name, value)
    if field.kind != MALFORMED:
        assert field.line == b"%b: %b\r\n" % (name, value)
        assert field.line.count(b"\r\n") == 1


# Limits, and the table


def test_fields_beyond_the_limit_are_counted_and_kept_but_not_handed_out() -> None:
    decoder = Decoder()
    block = b"".join(b"\x40\x01%c\x01v" % letter for letter in b"abc")
    assert pairs(decoder.decode(block, 34 * 2)) == [(b"a", b"v"), (b"b", b"v")]
    assert decoder.size == 34 * 3
    assert table(decoder) == [(b"c", b"v"), (b"b", b"v"), (b"a", b"v")]


@pytest.mark.parametrize(
    ("block", "changed"),
    [
        (b"\x82\x84", False),
        (b"\0\1x\1y", False),
        (b"\x10\1x\1y", False),
        (b"\xbe", False),
        (b"\x40\1x\1y", True),
        (b"\x20", True),
        (b"\x3f\x03", True),  # 34 bytes, so that one entry has to go
    ],
)
def test_decoder_says_whether_the_table_has_changed(block: bytes, changed: bool) -> None:
    decoder = Decoder()
    assert read(decoder, b"\x40\1x\1y\x40\1x\1z") is not None
    assert read(decoder, block) is not None
    assert decoder.changed is changed


def test_field_larger_than_the_table_empties_it() -> None:
    decoder = Decoder()
    assert read(decoder, b"\x40\1x\1y") is not None
    assert read(decoder, b"\x40" + plain([(b"x", b"v" * TABLE_SIZE)])[1:]) is not None
    assert table(decoder) == []
    assert read(decoder, b"\x40\1x\1y\xbe") == [(b"x", b"y")] * 2


def test_name_may_be_that_of_an_entry_which_has_to_go() -> None:
    """RFC 7541 section 4.4."""
    decoder = Decoder()
    assert read(decoder, b"\x3f\x03\x40\1x\1y") is not None  # 34 bytes: one entry
    assert read(decoder, b"\x7e\1z") == [(b"x", b"z")]
    assert table(decoder) == [(b"x", b"z")]


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xff\x80\x01",
        b"\xbe",
        b"\xff",
        b"\x3f",
        b"\x3f\xe2\x1f",  # a table of 4097 bytes
        b"\x82\x20",
        b"\x40",
        b"\x40\1",
        b"\x40\1x",
        b"\x40\1x\5y",
        b"\x40\7x",
        b"\x7e\1y",
        b"\0\x7f\xff\xff\xff\x7f",
        b"\0\x81\xff\1y",
        b"\0\1x\x81\xff",
    ],
)
def test_what_makes_no_sense_is_refused(block: bytes) -> None:
    with pytest.raises(CompressionFailed):
        Decoder().decode(block, MOST)


# What goes out


@given(NAMES, VALUES)
def test_literals_are_read_by_others_and_change_no_table(name: bytes, value: bytes) -> None:
    name = name.lower()
    block = literal(name, value)
    assert block.startswith(literal_name(name)) and block.endswith(value)
    decoder = hpack.Decoder()
    assert theirs(decoder, NO_TABLE + block) == [(name, value)]
    assert not decoder.header_table.dynamic_entries
    assert read(Decoder(), block) == [(name, value)]


@pytest.mark.parametrize("status", range(100, 600))
def test_every_status_is_read_by_others(status: int) -> None:
    block = encode_status(status)
    assert theirs(hpack.Decoder(), block) == [(b":status", b"%d" % status)]
    assert (len(block) == 1) == (status in (200, 204, 206, 304, 400, 404, 500))


LINE = st.tuples(
    st.sampled_from([b"Server", b"x", b"X-Own", b"content-type", b"SET-COOKIE", b"Set-Cookie2", b"Via"]),
    st.sampled_from([b":", b": ", b":\t "]),
    st.sampled_from([b"", b"v", b"a: b,\tc", b"\xff", b"v" * 127, b"v" * 600]),
    st.sampled_from([b"", b" "]),
)


@given(st.lists(LINE, max_size=6))
def test_lines_of_http1_are_read_by_others(lines: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
    block = encode_lines(b"".join(b"".join(line) + b"\r\n" for line in lines))
    assert theirs(hpack.Decoder(), block) == [(name.lower(), value) for name, _, value, _ in lines]


def test_cookies_are_marked_so_that_nobody_keeps_them_in_a_table() -> None:
    """RFC 7541 section 7.1.3."""
    block = encode_lines(b"Set-Cookie: a=b\r\nSERVER: x\r\n") + literal(b"set-cookie", b"c=d")
    kinds = [type(field) for field in hpack.Decoder().decode(block, raw=True)]
    assert kinds == [hpack.NeverIndexedHeaderTuple, hpack.HeaderTuple, hpack.NeverIndexedHeaderTuple]
