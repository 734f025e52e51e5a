"""Frames as bytes, seen by another reader of them."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    Frame as TheirFrame,
)
from hyperframe.frame import (
    GoAwayFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from fedproxy.wire.h2 import frame
from fedproxy.wire.h2.frame import Code
from tests.rig import h2 as rig

STREAM = st.integers(0, (1 << 31) - 1)
NUMBER = st.integers(0, (1 << 32) - 1)


@given(st.integers(0, 255), st.integers(0, 255), STREAM, st.binary(max_size=600))
def test_frame_is_its_header_and_its_payload(kind: int, flags: int, stream: int, payload: bytes) -> None:
    made = frame.frame(kind, flags, stream, payload)
    assert made == rig.frame(kind, flags, stream, payload)
    assert made == frame.header(len(payload), kind, flags, stream) + payload
    high, low, *rest = frame.read_header(b"before" + made, 6)
    assert (high << 8 | low, rest) == (len(payload), [kind, flags, stream])


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, 65_536, frame.LARGEST_FRAME])
def test_length_has_three_bytes(size: int) -> None:
    made = frame.header(size, frame.DATA, 0, 1)
    assert (len(made), made[:3]) == (frame.HEADER_SIZE, size.to_bytes(3, "big"))


@given(st.dictionaries(st.integers(0, 65_535), NUMBER, max_size=8))
def test_settings_are_read_as_they_were_said(values: dict[int, int]) -> None:
    made = frame.settings(values)
    assert frame.read_settings(made[9:]) == list(values.items())


@given(st.lists(st.tuples(st.integers(0, 3), NUMBER), max_size=6))
def test_setting_that_is_said_twice_is_read_twice(values: list[tuple[int, int]]) -> None:
    payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values)
    assert frame.read_settings(payload) == values


@given(NUMBER, st.binary(max_size=5))
def test_reserved_bit_means_nothing(value: int, before: bytes) -> None:
    assert frame.number(before + value.to_bytes(4, "big"), len(before)) == value & 0x7FFFFFFF


@given(STREAM.filter(bool), st.integers(1, (1 << 31) - 1), st.sampled_from(Code))
def test_others_read_what_is_made(stream: int, size: int, code: Code) -> None:
    def read(data: bytes) -> TheirFrame:
        found, length = TheirFrame.parse_frame_header(memoryview(data[:9]), strict=True)
        assert length == len(data) - 9
        found.parse_body(memoryview(data[9:]))
        return found

    update = read(frame.window_update(stream, size))
    assert isinstance(update, WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (stream, size)
    reset = read(frame.rst_stream(stream, code))
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (stream, code)
    goaway = read(frame.goaway(stream, code))
    assert isinstance(goaway, GoAwayFrame)
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (stream, code, b"")
    said = read(frame.settings({frame.INITIAL_WINDOW_SIZE: size}))
    assert isinstance(said, SettingsFrame)
    assert (said.stream_id, said.settings) == (0, {SettingsFrame.INITIAL_WINDOW_SIZE: size})
    acknowledged = read(frame.SETTINGS_ACK)
    assert isinstance(acknowledged, SettingsFrame) and "ACK" in acknowledged.flags


def test_codes_and_settings_have_their_registered_numbers() -> None:
    assert {each.name: each.value for each in Code} == {each.name: each.value for each in ErrorCodes}
    for each in SettingCodes:
        assert getattr(frame, each.name) == each.value
    assert frame.NO_RFC7540_PRIORITIES == 9
    assert rig.PREFACE == frame.PREFACE
