from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise, takewhile
from typing import Any

from benchmarks.simulate.visitors import DAY, HOUR, Asked, Visitors
from tests.simulate.worlds import world


def launches(count: int = 20_000, seed: int = 1, **more: Any) -> list[Asked]:
    return list(islice(Visitors(world(**more), seed), count))


def until(end: float, **more: Any) -> list[Asked]:
    return list(takewhile(lambda asked: asked[0] < end, Visitors(world(**more), 1)))


def test_launches_come_in_the_order_of_time_at_the_rate_of_the_scenario() -> None:
    made = until(7 * DAY, visitors={"launches_per_hour": 100})
    assert all(before[0] <= after[0] for before, after in pairwise(made))
    assert abs(len(made) / (7 * 24) - 100) < 3


def test_rate_follows_the_hours_and_the_days() -> None:
    hours = [0.0] * 24
    hours[9] = hours[10] = 1.0
    made = until(
        7 * DAY, visitors={"launches_per_hour": 100, "again": 0, "hours": hours, "days": [1, 3, *[0] * 5]}
    )
    assert {int(asked[0] // HOUR) % 24 for asked in made} == {9, 10}
    by_day = Counter(int(asked[0] // DAY) for asked in made)
    assert set(by_day) == {0, 1}
    assert 2.8 < by_day[1] / by_day[0] < 3.2


def test_time_before_the_measured_part_is_that_before_monday() -> None:
    days = [0, 0, 0, 0, 0, 0, 1]
    made = until(DAY, warm_up="1d", visitors={"launches_per_hour": 50, "again": 0, "days": days})
    assert abs(len(made) / (7 * 24) - 50) < 3


def test_repositories_follow_zipf() -> None:
    made = launches(repositories={"count": 100, "exponent": 1, "new_per_day": 0})
    ranks = [count for _, count in Counter(asked[4] for asked in made).most_common()]
    assert 1.6 < ranks[0] / ranks[1] < 2.4
    assert len(ranks) == 100


def test_bots_launch_any_repository_once_and_keep_no_cookie() -> None:
    made = launches(visitors={"bots": 1}, repositories={"count": 100, "new_per_day": 0})
    counts = Counter(asked[4] for asked in made)
    assert max(counts.values()) < 2 * min(counts.values())
    assert not any(asked[2] for asked in made)
    assert all(asked[3] for asked in made)


def test_embeds_keep_no_cookie_though_they_come_again() -> None:
    made = launches(2000, visitors={"embeds": 1, "bots": 0, "again": 0.5})
    assert not any(asked[2] for asked in made)
    assert max(Counter(asked[1] for asked in made).values()) == 4


def test_last_launch_of_a_visitor_is_known_to_be() -> None:
    made = launches(visitors={"again": 0.5, "gap": {"median": "1m", "p95": "2m"}})[:-500]
    lasts = {asked[1]: asked[3] for asked in made}
    assert sum(lasts.values()) > 0.98 * len(lasts)
    assert sum(asked[3] for asked in made) == sum(lasts.values())


def test_commit_makes_a_new_image() -> None:
    still = launches(repositories={"count": 1, "new_per_day": 0, "commit_every": 0})
    assert {asked[5] for asked in still} == {0}
    moving = launches(repositories={"count": 1, "new_per_day": 0, "commit_every": "1h"})
    assert 70 < len({asked[5] for asked in moving}) < 130


def test_new_repositories_take_the_places_of_others() -> None:
    made = until(10 * DAY, repositories={"count": 10, "new_per_day": 5}, visitors={"launches_per_hour": 100})
    assert 40 < len({asked[4] for asked in made}) < 75


def test_crowd_comes_at_its_time_and_again() -> None:
    crowd = {"at": "2h", "lasts": "1m", "launches": 300, "every": "1d"}
    made = until(2 * DAY, visitors={"launches_per_hour": 10, "crowds": [crowd]}, warm_up="1h")
    times = Counter(asked[4] for asked in made)
    first, second = (repository for repository, count in times.items() if count == 300)
    for repository, begin in ((first, 3 * HOUR), (second, 27 * HOUR)):
        came = [asked[0] for asked in made if asked[4] == repository]
        assert begin <= min(came) <= max(came) <= begin + 60


def test_crowd_of_a_rank_comes_for_what_is_popular() -> None:
    crowd = {"at": "2h", "launches": 300, "rank": 1}
    made = until(3 * HOUR, visitors={"launches_per_hour": 1, "crowds": [crowd]}, repositories={"count": 5})
    assert Counter(asked[4] for asked in made)[0] >= 300


def test_luck_does_not_depend_on_how_many_edges_there_are() -> None:
    assert launches(500) == launches(500, edge={"count": 7})


def test_another_seed_has_other_visitors() -> None:
    assert launches(500) == launches(500)
    assert launches(500, seed=2) != launches(500)
