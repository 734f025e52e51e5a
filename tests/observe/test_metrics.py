from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fedproxy import __version__, is_compiled
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import BOUNDS, EdgeCounts, Exemplar
from fedproxy.decide.member import Member
from fedproxy.decide.snapshot import AddressState, Survey, snapshot
from fedproxy.observe.metrics import View, content_type, expose
from fedproxy.observe.processes import ProcessUse
from tests.rig.build import member
from tests.rig.state import fleet_of_three

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def busy_view() -> View:
    gesis, ovh = member("gesis", weight=50.0), member("ovh")
    counts = gesis.counts
    counts.codes[200] = 7
    counts.codes[502] = 1
    for seconds in (0.001, 0.2, 0.2, 9999.0):
        counts.duration.observe(seconds)
    counts.first_byte.observe(0.02)
    counts.bytes_in, counts.bytes_out = 10, 2000
    counts.errors["connect"] = 3
    counts.retries["connect"] = 2
    counts.affinity["cookie"] = 5
    counts.launches["ready"] = 4
    gesis.in_flight, gesis.launches = 2, 1
    gesis.breaker.trip(0.0, 0.0)
    ovh.set_health(False, 0.0, ("Pod quota", "versions"))
    gesis.counts.launch_duration.observe(20.0)
    gesis.counts.launch_phases["building"] += 12.5
    gesis.counts.choices["image"] += 3
    gesis.counts.failovers["ovh"] += 2
    gesis.counts.last_resort += 17
    addresses = (AddressState("192.0.2.1", 5), AddressState("192.0.2.2", 0, 3, True))
    edge = EdgeCounts()
    edge.connections = 9
    edge.rejected["malformed"] = 6
    edge.budget_exhausted = 8
    edge.lines_dropped["access"] = 11
    return View(
        Survey(
            (snapshot(gesis, 1.0, idle=3, busy=2, addresses=addresses), snapshot(ovh, 1.0)), edge, workers=2
        ),
        reloads={"success": 1},
        reloaded_at=1763900000.5,
        processes=[
            ProcessUse("control", "", 1.5, 0.25, 1 << 20, 30, 1024, 1763900000.5),
            ProcessUse("forker", "", 0.5, None, 1 << 19, None, None, 1763900001.5),
            ProcessUse("worker", "0", 7.25, 0.0, 1 << 21, 40, 1024, 1763900002.5),
        ],
    )


def view_of(*members: Member) -> View:
    return View(Survey([snapshot(member, 0.0) for member in members], EdgeCounts()))


def families(view: View) -> dict[str, Metric]:
    return {family.name: family for family in parse_text("".join(expose(view, "")))}


def samples(found: Iterable[Metric]) -> Samples:
    result: Samples = {}
    for family in found:
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in result, f"{key} is there twice"
            result[key] = sample.value
    return result


@pytest.fixture
def found() -> Samples:
    return samples(families(busy_view()).values())


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("fedproxy_requests_total", {"member": "gesis", "code": "200"}, 7),
        ("fedproxy_requests_total", {"member": "gesis", "code": "502"}, 1),
        ("fedproxy_time_to_first_byte_seconds_count", {"member": "gesis"}, 1),
        ("fedproxy_bytes_total", {"member": "gesis", "direction": "in"}, 10),
        ("fedproxy_bytes_total", {"member": "gesis", "direction": "out"}, 2000),
        ("fedproxy_requests_in_flight", {"member": "gesis"}, 2),
        ("fedproxy_launches_in_flight", {"member": "gesis"}, 1),
        ("fedproxy_upstream_connections", {"member": "gesis", "state": "idle"}, 3),
        ("fedproxy_upstream_connections", {"member": "gesis", "state": "active"}, 2),
        ("fedproxy_upstream_connections", {"member": "ovh", "state": "idle"}, 0),
        ("fedproxy_upstream_errors_total", {"member": "gesis", "reason": "connect"}, 3),
        ("fedproxy_retries_total", {"member": "gesis", "reason": "connect"}, 2),
        ("fedproxy_affinity_total", {"member": "gesis", "source": "cookie"}, 5),
        ("fedproxy_affinity_total", {"member": "ovh", "source": "moved"}, 0),
        ("fedproxy_member_addresses", {"member": "gesis", "state": "usable"}, 1),
        ("fedproxy_member_addresses", {"member": "gesis", "state": "aside"}, 1),
        ("fedproxy_member_up", {"member": "gesis"}, 1),
        ("fedproxy_member_up", {"member": "ovh"}, 0),
        ("fedproxy_member_status", {"member": "gesis", "status": "ejected"}, 1),
        ("fedproxy_member_status", {"member": "gesis", "status": "available"}, 0),
        ("fedproxy_member_status", {"member": "ovh", "status": "unhealthy"}, 1),
        ("fedproxy_member_weight", {"member": "gesis"}, 50),
        ("fedproxy_breaker_state", {"member": "gesis"}, 2),
        ("fedproxy_breaker_state", {"member": "ovh"}, 0),
        ("fedproxy_breaker_transitions_total", {"member": "gesis", "to": "open"}, 1),
        ("fedproxy_last_resort_total", {"member": "gesis"}, 17),
        ("fedproxy_launches_total", {"member": "gesis", "outcome": "ready"}, 4),
        ("fedproxy_launch_duration_seconds_count", {"member": "gesis"}, 1),
        ("fedproxy_launch_duration_seconds_sum", {"member": "gesis"}, 20),
        ("fedproxy_launch_phase_seconds_total", {"member": "gesis", "phase": "building"}, 12.5),
        ("fedproxy_launch_failovers_total", {"from": "gesis", "to": "ovh"}, 2),
        ("fedproxy_choices_total", {"member": "gesis", "reason": "image"}, 3),
        ("fedproxy_choices_total", {"member": "ovh", "reason": "tie"}, 0),
        ("fedproxy_downstream_connections", {}, 9),
        ("fedproxy_rejected_total", {"reason": "malformed"}, 6),
        ("fedproxy_retry_budget_exhausted_total", {}, 8),
        ("fedproxy_log_lines_dropped_total", {"log": "access"}, 11),
        ("fedproxy_log_lines_dropped_total", {"log": "events"}, 0),
        ("fedproxy_config_reloads_total", {"result": "success"}, 1),
        ("fedproxy_config_reloads_total", {"result": "failure"}, 0),
        ("fedproxy_config_last_reload_success_timestamp_seconds", {}, 1763900000.5),
        ("fedproxy_workers", {}, 2),
        ("fedproxy_build_info", {"version": __version__, "compiled": str(is_compiled()).lower()}, 1),
        ("fedproxy_process_cpu_seconds_total", {"process": "worker", "worker": "0"}, 7.25),
        ("fedproxy_process_resident_memory_bytes", {"process": "forker", "worker": ""}, 1 << 19),
        ("fedproxy_process_open_fds", {"process": "control", "worker": ""}, 30),
        ("fedproxy_process_max_fds", {"process": "worker", "worker": "0"}, 1024),
        ("fedproxy_process_start_time_seconds", {"process": "worker", "worker": "0"}, 1763900002.5),
        ("fedproxy_process_loop_lag_seconds_total", {"process": "control", "worker": ""}, 0.25),
        ("federation_health", {"member": "gesis", "reason": ""}, 1),
        ("federation_health", {"member": "ovh", "reason": "Pod quota"}, 0),
        ("federation_redirect_count", {"member": "gesis", "reason": "cookie"}, 5),
    ],
)
def test_what_was_counted_is_exposed(found: Samples, name: str, labels: dict[str, str], value: float) -> None:
    assert found[name, frozenset(labels.items())] == value


def test_what_is_not_known_of_a_process_has_no_series(found: Samples) -> None:
    known = {name for name, labels in found if ("process", "forker") in labels}
    prefix = "fedproxy_process_"
    assert known == {
        f"{prefix}{each}" for each in ("cpu_seconds_total", "resident_memory_bytes", "start_time_seconds")
    }


def test_histogram_is_cumulative_and_ends_with_all() -> None:
    family = families(busy_view())["fedproxy_request_duration_seconds"]
    own = [s for s in family.samples if s.labels["member"] == "gesis"]
    buckets = {s.labels["le"]: s.value for s in own if s.name.endswith("_bucket")}
    assert len(buckets) == len(BOUNDS) + 1
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.001"], buckets["0.25"], buckets["3600.0"], buckets["+Inf"]) == (1, 3, 3, 4)
    (count,) = (s.value for s in own if s.name.endswith("_count"))
    (total,) = (s.value for s in own if s.name.endswith("_sum"))
    assert count == 4
    assert total == pytest.approx(9999.401)


def test_counters_are_named_so_and_every_family_has_one_type_and_help() -> None:
    text = "".join(expose(busy_view(), ""))
    types = [line.split(" ", 3)[2:] for line in text.splitlines() if line.startswith("# TYPE ")]
    helps = [line.split(" ", 3)[2] for line in text.splitlines() if line.startswith("# HELP ")]
    assert len({name for name, _ in types}) == len(types) == len(helps)
    for name, kind in types:
        assert name.endswith("_total") == (kind == "counter"), name


def test_openmetrics_is_valid_and_says_the_same() -> None:
    view = busy_view()
    body, plain = "".join(expose(view, OPENMETRICS)), "".join(expose(view, "text/plain"))

    def ours(found: Samples) -> Samples:
        return {key: value for key, value in found.items() if not key[0].startswith("process_")}

    read = parse_openmetrics(body)  # type: ignore[no-untyped-call]
    assert ours(samples(read)) == ours(samples(parse_text(plain)))


@pytest.mark.parametrize(
    ("accept", "modern"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5", False),
        (OPENMETRICS, True),
        (f"{OPENMETRICS};escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2", True),
        ("application/openmetrics-text;q=0.1,text/plain;q=0.5", False),
        ("application/openmetrics-text;version=0.0.1", True),
        ("application/openmetrics-text;version=abc", False),
        ("application/openmetrics-text;version=99.0.0,*/*;q=0.1", False),
        ("application/openmetrics-text;;=;q=nan", False),
        ("application/openmetrics-text;q=0", False),
        ("application/vnd.google.protobuf;encoding=delimited", False),
        (",;q=,\x00", False),
    ],
)
def test_form_is_the_one_that_is_asked_for_and_nonsense_gets_the_plain_one(accept: str, modern: bool) -> None:
    assert content_type(accept).startswith("application/openmetrics-text; version=1.0.0") is modern
    assert content_type(accept).startswith("text/plain; version=0.0.4") is not modern
    assert "".join(expose(busy_view(), accept)).endswith("# EOF\n") is modern


def test_process_metrics_say_of_which_process_they_are() -> None:
    found = families(busy_view())
    assert {"process_open_fds", "process_resident_memory_bytes"} <= found.keys()
    for name, family in found.items():
        assert ("control process" in family.documentation) == name.startswith("process_")


def test_health_has_one_series_a_member_and_no_stale_reason() -> None:
    ill = member("a")

    def health() -> list[tuple[str, float]]:
        return [(s.labels["reason"], s.value) for s in families(view_of(ill))["federation_health"].samples]

    ill.set_health(False, 0.0, ("versions", "quota"))
    assert health() == [("versions", 0)]
    ill.set_health(False, 0.0, ("quota",))
    assert health() == [("Pod quota", 0)]
    ill.set_health(False, 0.0, ("dns",))
    assert health() == [("dns", 0)]
    ill.set_health(False, 0.0)
    assert health() == [("unknown", 0)]
    ill.set_health(True, 0.0)
    assert health() == [("", 1)]


def test_member_that_left_leaves_no_series() -> None:
    members: list[Member] = [member("a"), member("b")]
    members[0].counts.failovers["b"] += 1
    assert 'to="b"' in "".join(expose(view_of(*members), ""))
    members.pop()
    assert '"b"' not in "".join(expose(view_of(*members), ""))


def test_label_values_are_escaped() -> None:
    odd = member('a"b\\c\nd')
    assert 'a"b\\c\nd' in {s.labels["member"] for s in families(view_of(odd))["fedproxy_member_up"].samples}


def test_edge_with_no_members_and_no_reload_is_exposed() -> None:
    found = families(view_of())
    assert found["fedproxy_requests"].samples == []
    assert "fedproxy_config_last_reload_success_timestamp_seconds" not in found


def test_breaker_s_half_open_state_is_one() -> None:
    trying = member("a")
    trying.breaker.trip(0.0, 0.0)
    trying.breaker.acquire(1000.0)
    assert trying.breaker.state is BreakerState.HALF_OPEN
    found = samples(families(view_of(trying)).values())
    assert found["fedproxy_breaker_state", frozenset({("member", "a")})] == 1


def test_what_the_probes_said_is_exposed() -> None:
    known = replace(
        snapshot(member("a"), 0.0),
        checks={"Docker registry": True, "versions": False},
        pods={"total": 137, "user": 133},
        quota=300,
    )
    found = samples(families(View(Survey([known], EdgeCounts()))).values())
    assert found["federation_health_check", frozenset({("member", "a"), ("check", "versions")})] == 0
    assert found["federation_health_check", frozenset({("member", "a"), ("check", "Docker registry")})] == 1
    assert found["fedproxy_member_pods", frozenset({("member", "a"), ("kind", "user")})] == 133
    assert found["fedproxy_member_quota", frozenset({("member", "a")})] == 300


def test_certificates_tell_when_they_expire() -> None:
    view = View(Survey([], EdgeCounts()), certificates={"mybinder.org": 1.8e9})
    found = samples(families(view).values())
    assert (
        found["fedproxy_tls_certificate_expiry_timestamp_seconds", frozenset({("name", "mybinder.org")})]
        == 1.8e9
    )


def test_openmetrics_has_the_example_of_each_bucket_and_plain_text_has_none() -> None:
    gesis = member("gesis")
    for seconds in (0.2, 0.3, 9999.0):
        gesis.counts.record("key", 0.0, None, seconds, 0)
    gesis.counts.duration.exemplify(Exemplar(0.2, "a" * 32, 1763900000.5))
    gesis.counts.duration.exemplify(Exemplar(9999.0, "b" * 32, 1763900001.5))
    parsed = parse_openmetrics("".join(expose(view_of(gesis), OPENMETRICS)))  # type: ignore[no-untyped-call]
    found = {
        sample.labels["le"]: sample.exemplar
        for family in parsed
        if family.name == "fedproxy_request_duration_seconds"
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert {
        le: (each.labels["trace_id"], each.value, float(each.timestamp)) for le, each in found.items()
    } == {
        "0.25": ("a" * 32, 0.2, 1763900000.5),
        "+Inf": ("b" * 32, 9999.0, 1763900001.5),
    }
    assert "trace_id" not in "".join(expose(view_of(gesis), ""))


def test_edge_that_is_alone_is_one_edge_whose_file_is_its_store() -> None:
    found = samples(families(view_of(member("gesis"))).values())
    assert found["fedproxy_edges", frozenset()] == found["fedproxy_store_up", frozenset()] == 1
    assert found["fedproxy_edges_disagreeing", frozenset()] == 0
    assert not [name for name, _ in found if name == "fedproxy_launch_slots"]
    results = [dict(labels)["result"] for name, labels in found if name == "fedproxy_store_commands_total"]
    assert sorted(results) == ["failed", "ok"]


def test_fleet_is_counted_with_what_its_store_did() -> None:
    view = replace(view_of(member("gesis")), fleet=fleet_of_three(up=False))
    found = samples(families(view).values())
    assert found["fedproxy_edges", frozenset()] == 3
    assert found["fedproxy_edges_disagreeing", frozenset()] == 1
    assert found["fedproxy_store_up", frozenset()] == 0
    assert found["fedproxy_store_commands_total", frozenset({("result", "failed")})] == 3
    assert found["fedproxy_store_hints_dropped_total", frozenset()] == 2
    assert found["fedproxy_launch_slots", frozenset({("member", "gesis")})] == 7
