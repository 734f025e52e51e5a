from fedproxy.bounded import Generations, Memo


def test_what_is_used_survives_a_turn_and_what_is_not_is_forgotten_by_the_second() -> None:
    table = Generations[bytes, int]()
    table.put(b"used", 1)
    table.put(b"idle", 2)
    table.turn()
    value = table.take(b"used")
    assert value == 1
    assert len(table) == 1
    table.put(b"used", value)
    assert dict(table.young) == {b"used": 1}
    table.turn()
    assert table.take(b"idle") is None
    assert table.take(b"used") == 1


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
