from __future__ import annotations

import pytest

from fedproxy.decide.counts import BOUNDS, EdgeCounts, Exemplar, Histogram, MemberCounts


def test_bounds_rise_from_a_millisecond_to_an_hour() -> None:
    assert list(BOUNDS) == sorted(set(BOUNDS))
    assert (BOUNDS[0], BOUNDS[-1]) == (0.001, 3600.0)


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.001, 0), (0.002, 1), (3600.0, -2), (3601.0, -1)])
def test_value_falls_into_the_bucket_whose_bound_includes_it(value: float, bucket: int) -> None:
    histogram = Histogram()
    histogram.observe(value)
    assert histogram.counts[bucket] == 1
    assert sum(histogram.counts) == 1
    assert histogram.total == value


def test_both_times_of_a_request_are_counted_where_they_belong() -> None:
    counts = MemberCounts()
    counts.record("key", 0.0, 0.002, 0.002, 100)
    counts.record("key", 0.0, 0.0, 3601.0, 20)
    counts.record("cookie", 0.0, None, 0.3, 0)
    durations, first_bytes = counts.durations(), counts.first_bytes()
    assert durations.counts[1] == durations.counts[-1] == durations.counts[8] == 1
    assert first_bytes.counts[1] == first_bytes.counts[0] == 1
    assert sum(durations.counts) == 3
    assert sum(first_bytes.counts) == 2
    assert (durations.total, first_bytes.total) == (3601.302, 0.002)
    assert (dict(counts.affinity), counts.bytes_out) == ({"key": 2, "cookie": 1}, 120)


def test_last_example_of_a_bucket_is_kept_and_the_newest_of_all_workers() -> None:
    mine, other = Histogram(), Histogram()
    first, second, third = (Exemplar(0.002, f"{at:032x}", float(at)) for at in (1, 2, 3))
    slow = Exemplar(9999.0, f"{4:032x}", 4.0)
    mine.exemplify(first)
    mine.exemplify(third)
    assert mine.exemplars == {1: third}
    other.exemplify(second)
    other.exemplify(slow)
    mine.add(other)
    assert mine.exemplars == {1: third, len(BOUNDS): slow}
    other.add(mine)
    assert other.exemplars == mine.exemplars


def test_counts_of_a_new_key_start_at_zero() -> None:
    member, edge = MemberCounts(), EdgeCounts()
    member.codes[200] += 1
    edge.rejected["full"] += 1
    assert dict(member.codes) == {200: 1}
    assert dict(edge.rejected) == {"full": 1}
    assert (edge.connections, edge.requests, edge.budget_exhausted) == (0, 0, 0)
    assert (member.bytes_in, member.bytes_out) == (0, 0)
