"""`weight: auto` in the control process: what reports and launches make of it, and what is told."""

from __future__ import annotations

from typing import Any

import pytest

from fedproxy.config.model import MemberSettings, RampSettings
from fedproxy.control.prober import Report
from fedproxy.control.weights import AutoWeights
from fedproxy.decide.knowledge import Knowledge, Seen
from fedproxy.decide.launch import End

AUTO = MemberSettings(url="https://a.example", weight="auto")


def report(total: int | None, quota: int | None, **more: Any) -> Report:
    pods = {} if total is None else {"total": total}
    return Report("a", healthy=True, pods=pods, quota=quota, **more)


SILENT = Report("a", healthy=True, reasons=("timeout",), details=("did not answer",))


def weights(knowledge: Knowledge | None = None) -> AutoWeights:
    return AutoWeights(knowledge or Knowledge())


def test_member_that_was_not_probed_has_the_weight_to_start_with() -> None:
    auto = weights()
    assert auto.step({"a": AUTO}, 0.0, 0.0) == []
    assert auto.tell("a") == auto.known("a") == 100


def test_first_report_counts_at_once_and_later_ones_slowly() -> None:
    auto = weights()
    auto.observe(report(30, 300), AUTO, 0.0)
    assert auto.tell("a") == auto.known("a") == 300
    auto.observe(report(290, 300), AUTO, 1.0)
    assert auto.tell("a") == 300
    auto.step({"a": AUTO}, 1.0, 1.0)
    assert 290 < auto.tell("a") < 300
    for second in range(2, 400):
        auto.step({"a": AUTO}, float(second), float(second))
    # (0.02 + 0.98 * (10 / 300) / 0.25) * 300
    assert auto.tell("a") == pytest.approx(45.2, rel=0.02)


def test_only_what_differs_by_more_than_two_hundredths_is_told() -> None:
    auto = weights()
    auto.observe(report(30, 300), AUTO, 0.0)
    assert auto.step({"a": AUTO}, 0.0, 0.0) == ["a"]  # workers have 100
    auto.tell("a")
    assert auto.step({"a": AUTO}, 1.0, 1.0) == []
    auto.observe(report(300, 300), AUTO, 1.0)
    due = [second for second in range(2, 8) if auto.step({"a": AUTO}, float(second), float(second))]
    # 300 to 6 with 60 s: it has lost 2 % after a bit more than a second.
    assert due == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("other", [{"weight": 7.0}, {"ramp": RampSettings(share=0.2)}])
def test_weight_that_a_number_or_a_ramp_replaces_is_known_and_told_to_nobody(other: dict[str, Any]) -> None:
    auto = weights()
    number = AUTO.model_copy(update=other)
    auto.observe(report(0, 60), number, 0.0)
    assert auto.step({"a": number}, 1.0, 1.0) == []
    assert auto.tell("a") == 60


def test_member_that_does_not_answer_keeps_what_it_said() -> None:
    auto = weights()
    auto.observe(SILENT, AUTO, 0.0)
    assert auto.tell("a") == 100
    auto.observe(report(0, 60), AUTO, 1.0)
    auto.observe(SILENT, AUTO, 2.0)
    auto.step({"a": AUTO}, 200.0, 200.0)
    assert auto.tell("a") == 60


def test_member_that_has_no_quota_any_more_comes_to_the_weight_to_start_with() -> None:
    auto = weights()
    auto.observe(report(0, 60), AUTO, 0.0)
    auto.observe(report(0, None), AUTO, 1.0)
    for second in range(1, 400):
        auto.step({"a": AUTO}, float(second), float(second))
    assert auto.tell("a") == pytest.approx(100, rel=0.01)


def test_member_whose_launches_fail_loses_weight_and_one_without_launches_takes_no_room() -> None:
    knowledge = Knowledge()
    auto = weights(knowledge)
    auto.observe(report(0, 300), AUTO, 0.0)
    assert auto.tell("a") == 300
    assert knowledge.members == {}
    for number in range(20):
        knowledge.learn(Seen(b"%08d" % number, "a", True, None, None, End.FAILED, failed=True), 0.0)
    for second in range(400):
        auto.step({"a": AUTO}, float(second), 0.0)
    # A good half of its launches fails, with the doubt that few of them leave.
    assert 15 <= auto.tell("a") < 120


def test_member_that_left_begins_anew() -> None:
    auto = weights()
    auto.observe(report(0, 300), AUTO, 0.0)
    auto.tell("a")
    auto.tell("b")
    auto.forget({"a"})
    assert (auto.known("a"), auto.known("b")) == (300, 100)
    auto.forget(())
    assert auto.tell("a") == 100
    auto.observe(report(0, 60), AUTO, 1.0)
    assert auto.tell("a") == 60
