from fedproxy.wire import grammar
from fedproxy.wire.grammar import FIELD, tokens


def test_tokens_are_lower_case_without_empty_ones() -> None:
    assert tokens(b"Close , ,\tUpgrade,") == (b"close", b"upgrade")


def test_long_lists_are_read_and_not_kept() -> None:
    before = grammar._known_tokens.cache_info()
    assert tokens(b"A, " * 1000) == (b"a",) * 1000
    assert grammar._known_tokens.cache_info() == before


def test_long_white_space_before_a_malformed_value_is_refused_in_one_pass() -> None:
    # With its square for a cost this would take days.
    assert FIELD.fullmatch(b"a:" + b" " * (1 << 22) + b"\x01") is None
