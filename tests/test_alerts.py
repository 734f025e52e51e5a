"""Rules, runbook and dashboard agree with each other and with the metrics, and promtool accepts them."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from fedproxy.decide.affinity import Source
from fedproxy.decide.breaker import BreakerState
from fedproxy.decide.counts import EdgeCounts
from fedproxy.decide.launch import End
from fedproxy.decide.member import Intent
from fedproxy.decide.snapshot import AddressState, Status, Survey, snapshot
from fedproxy.errors import EdgeError, VisitorError, reasons_of
from fedproxy.observe.metrics import View, expose
from fedproxy.observe.processes import ProcessUse, Role
from tests.rig import programs
from tests.rig.build import member
from tests.rig.dashboard import DASHBOARD, QUERIES, panels
from tests.rig.state import fleet_of_three

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "conf" / "prometheus"
RUNBOOK = (ROOT / "docs" / "alerts.md").read_text()
UNIT_TESTS = sorted((PROMETHEUS / "tests").glob("*.yaml"))
CONFIGS = ["prometheus.yaml", "kubernetes.yaml"]

PROMETHEUS_LABELS = {"job", "instance"}
#: What the program says in a label, where an expression asks for it.
VALUES = {
    ("federation_health", "reason"): {"", "Pod quota", "versions", "dns", "connect", "tls", "timeout"},
    ("fedproxy_rejected_total", "reason"): reasons_of(VisitorError, EdgeError) | {"connections", "address"},
    ("fedproxy_affinity_total", "source"): set(Source),
    ("fedproxy_launches_total", "outcome"): set(End),
    ("fedproxy_member_state", "state"): set(Intent),
    ("fedproxy_member_status", "status"): set(Status),
    ("fedproxy_breaker_transitions_total", "to"): set(BreakerState),
    ("fedproxy_config_reloads_total", "result"): {"success", "failure"},
    ("fedproxy_log_lines_dropped_total", "log"): {"access", "events"},
    ("fedproxy_member_addresses", "state"): {"usable", "aside"},
    ("fedproxy_store_commands_total", "result"): {"ok", "failed"},
    ("fedproxy_member_pods", "kind"): {"total", "build", "user"},
    ("fedproxy_process_cpu_seconds_total", "process"): set(get_args(Role)),
    ("member:fedproxy_bytes:rate5m", "direction"): {"in", "out"},
}

needs_promtool = programs.needs("promtool", "prometheus")


def _rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = _rules("alerts.yaml")
RECORDED = _rules("recording.yaml")


EXPRESSIONS = [
    *((rule.get("alert") or rule["record"], rule["expr"]) for rule in (*RECORDED, *ALERTS)),
    *((title, expression) for title, expression, _ in QUERIES),
]


@cache
def _exposed() -> dict[str, set[str]]:
    """The labels of every sample that an edge can expose, by the sample's name."""
    gesis = member("gesis")
    counts = gesis.counts
    counts.codes[200] = 1
    for numbers in (
        counts.errors,
        counts.retries,
        counts.launches,
        counts.launch_phases,
    ):
        numbers["x"] = 1
    counts.failovers["gesis"] = 1
    edge = EdgeCounts()
    edge.rejected["x"] = 1
    addresses = (AddressState("192.0.2.1", 0),)
    seen = replace(snapshot(gesis, 0.0, addresses=addresses), pods={"total": 1}, quota=2, checks={"x": True})
    processes = [ProcessUse("worker", "0", 1.0, 1.0, 1, 1, 1, 1.0)]
    view = View(
        Survey([seen], edge),
        reloaded_at=1.0,
        certificates={"x": 1.0},
        processes=processes,
        fleet=fleet_of_three(),
        ramps={"x": 1.0},
        contacts={"x": "mailto:x@example.org"},
    )
    labels: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate", "member"}}
    for family in text_string_to_metric_families("".join(expose(view, ""))):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels


@cache
def _labels() -> dict[str, set[str]]:
    """The labels of every series, those that Prometheus adds and those of the recording rules too."""
    labels = {name: found | PROMETHEUS_LABELS for name, found in _exposed().items()}
    for rule in RECORDED:
        made = {"job", *(("instance",) if rule["record"].startswith("instance_") else ())}
        if "member:" in rule["record"]:
            made.add("member")
        labels[rule["record"]] = made
    labels["member:fedproxy_bytes:rate5m"].add("direction")
    return labels


def _names(expression: str) -> set[str]:
    bare = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"(?<![\w:])(?:up|ALERTS|[a-z_]*:?(?:fedproxy|federation)_[\w:]+)(?![\w:])", bare))


def _promtool(*arguments: str | Path, cwd: Path = PROMETHEUS) -> str:
    """What it says. It must be content."""
    result = subprocess.run(
        [programs.found("promtool"), *arguments],
        cwd=cwd,
        env={**os.environ, "GOGC": "400"},  # its garbage is small, and it would collect it all the time
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Rules


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expression_asks_for_series_and_labels_that_exist(where: str, expression: str) -> None:
    names = _names(expression)
    assert names
    assert names <= _labels().keys()
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= _labels()[name]
    grouped = re.findall(r"\b(?:by|on|group_left|without) \(([\w, ]*)\)", expression)
    known = set.union(*(_labels()[name] for name in names))
    assert {label for group in grouped for label in re.findall(r"\w+", group)} <= known


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_expression_asks_for_values_that_labels_can_have(where: str, expression: str) -> None:
    for name, matchers in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
        for label, values in re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', matchers):
            if (name, label) in VALUES:
                assert set(values.split("|")) <= VALUES[name, label], (name, label)
            else:
                # Others are names of the operator's, or numbers.
                assert label in {"job", "member", "from", "code", "alertname", "alertstate"}, (name, label)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"] + rule["labels"]["severity"])
def test_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    notes = rule["annotations"]
    assert notes.keys() == {"summary", "description", "runbook_url"}
    assert notes["runbook_url"] == f"docs/alerts.md#{rule['alert'].lower()}"
    assert "for" in rule
    used = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
    assert used <= set().union(*(_labels()[name] for name in _names(rule["expr"])))
    assert used or rule["alert"] == "FedproxyMissing"


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    sections = re.findall(r"^## (Fedproxy\w+)$", RUNBOOK, re.MULTILINE)
    assert sorted(sections) == sorted({rule["alert"] for rule in ALERTS})


@pytest.mark.parametrize("alert", sorted({rule["alert"] for rule in ALERTS}))
def test_section_of_the_runbook_says_what_to_do_and_how_bad_it_is(alert: str) -> None:
    section = RUNBOOK.partition(f"\n## {alert}\n")[2].partition("\n## ")[0]
    for part in ("**Visitors notice**", "**Look at**", "**Do**", "**Silence**"):
        assert f"- {part}" in section
    for rule in ALERTS:
        if rule["alert"] == alert:
            assert rule["labels"]["severity"] in section.lower()


def test_every_metric_and_alert_that_the_runbook_names_exists() -> None:
    named = set(re.findall(r"\b(?:fedproxy|federation)_[a-z_]+", RUNBOOK))
    assert named <= _exposed().keys() | {"federation_health_check"}
    assert set(re.findall(r"\bFedproxy\w+", RUNBOOK)) <= {rule["alert"] for rule in ALERTS}


def test_every_recorded_series_is_used() -> None:
    used = set().union(*(_names(expression) for _, expression in EXPRESSIONS))
    assert {rule["record"] for rule in RECORDED} - used == set()


def test_every_alert_is_tested_when_it_fires_and_when_it_does_not() -> None:
    fires: set[str] = set()
    rests: set[str] = set()
    for file in UNIT_TESTS:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case["alert_rule_test"]:
                (fires if check.get("exp_alerts") else rests).add(check["alertname"])
    assert fires == rests == {rule["alert"] for rule in ALERTS}


@needs_promtool
@pytest.mark.parametrize("name", CONFIGS)
def test_promtool_accepts_the_config(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((PROMETHEUS / name).read_text())
    for job in config["scrape_configs"]:
        # Debian's promtool was built without it.
        if job.pop("kubernetes_sd_configs", None) is not None:
            job["static_configs"] = [{"targets": ["127.0.0.1:8081"]}]
    for file in config["rule_files"]:
        (tmp_path / file).write_text((PROMETHEUS / file).read_text())
    (tmp_path / name).write_text(yaml.safe_dump(config))
    _promtool("check", "config", name, cwd=tmp_path)


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    _promtool("check", "rules", "recording.yaml", "alerts.yaml")


@needs_promtool
@pytest.mark.parametrize("file", UNIT_TESTS, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should_and_only_then(file: Path) -> None:
    _promtool("test", "rules", file)


def test_pods_that_kubernetes_runs_are_found() -> None:
    (job,) = yaml.safe_load((PROMETHEUS / "kubernetes.yaml").read_text())["scrape_configs"]
    (discovery,) = job["kubernetes_sd_configs"]
    ((label, value),) = (selector["label"].split("=") for selector in discovery["selectors"])
    deployment = yaml.safe_load((ROOT / "conf/kubernetes/base/deployment.yaml").read_text())
    template = deployment["spec"]["template"]
    assert template["metadata"]["labels"][label] == value
    ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
    assert {rule["regex"] for rule in job["relabel_configs"] if rule.get("action") == "keep"} <= ports


# The dashboard


def test_panels_have_ids_and_titles_of_their_own() -> None:
    assert max(Counter(panel["id"] for panel in DASHBOARD["panels"]).values()) == 1
    assert max(Counter(panel["title"] for panel in DASHBOARD["panels"]).values()) == 1


def test_panels_do_not_overlap() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken.update((at["x"] + dx, at["y"] + dy) for dx in range(at["w"]) for dy in range(at["h"]))
    assert max(taken.values()) == 1


def test_panels_ask_the_data_source_that_was_chosen() -> None:
    for panel in panels():
        assert [target["refId"] for target in panel["targets"]] == list("ABC"[: len(panel["targets"])])
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_variables_are_defined_in_the_order_in_which_they_need_each_other() -> None:
    variables = DASHBOARD["templating"]["list"]
    assert [variable["name"] for variable in variables] == ["datasource", "job", "member"]
    assert all(variable["multi"] and variable["includeAll"] for variable in variables[1:])
    for variable in variables[1:]:
        (asked,) = re.findall(r"^label_values\(([\w:]+)(?:\{.*\})?, (\w+)\)$", variable["query"]["query"])
        assert asked[1] in _labels()[asked[0]]


@pytest.mark.parametrize(("title", "expression", "legend"), QUERIES, ids=lambda text: text[:40])
def test_legend_names_labels_that_the_series_have(title: str, expression: str, legend: str) -> None:
    known = set.union(*(_labels()[name] for name in _names(expression)))
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= known
    assert "$" not in expression


def test_dashboard_shows_every_metric_of_the_edge() -> None:
    shown = set().union(*(_names(expression) for _, expression in EXPRESSIONS))
    exposed = {name for name in _exposed() if name.startswith("fedproxy_")}
    whole = {name for name in exposed if name.endswith(("_sum", "_count", "_created"))}
    assert exposed - whole - shown == set()


@needs_promtool
def test_promtool_accepts_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [
        {"record": f"asked:{number}", "expr": expression} for number, (_, expression, _) in enumerate(QUERIES)
    ]
    file = tmp_path / "asked.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    _promtool("check", "rules", file)
