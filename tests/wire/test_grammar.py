from fedproxy.wire import grammar
from fedproxy.wire.grammar import FIELD, Memo, tokens


def test_tokens_are_lower_case_without_empty_ones() -> None:
    assert tokens(b"Close , ,\tUpgrade,") == (b"close", b"upgrade")


def test_long_lists_are_read_and_not_kept() -> None:
    before = grammar._known_tokens.cache_info()
    assert tokens(b"A, " * 1000) == (b"a",) * 1000
    assert grammar._known_tokens.cache_info() == before


def test_long_white_space_before_a_malformed_value_is_refused_in_one_pass() -> None:
    # With its square for a cost this would take days.
    assert FIELD.fullmatch(b"a:" + b" " * (1 << 22) + b"\x01") is None


def test_memo_reads_a_key_once() -> None:
    read: list[bytes] = []

    def note(key: bytes) -> bytes:
        read.append(key)
        return key

    memo = Memo(note)
    assert [memo[b"a"], memo[b"b"], memo[b"a"]] == [b"a", b"b", b"a"]
    assert read == [b"a", b"b"]


def test_memo_is_bounded_and_keeps_what_is_in_use() -> None:
    read: list[bytes] = []

    def note(key: bytes) -> bytes:
        read.append(key)
        return key

    memo = Memo(note, entries=4)
    for number in range(100):
        assert memo[b"%d" % number] == b"%d" % number
        assert memo[b"steady"] == b"steady"
        assert len(memo) <= 4
    assert read.count(b"steady") == 1


def test_memo_does_not_keep_long_keys() -> None:
    memo = Memo[int](len, longest=2)
    assert memo[b"abc"] == 3
    assert len(memo) == 0
