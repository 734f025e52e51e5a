"""The Helm chart, rendered by Helm, fits the schemas and the manifests of kustomize; its config is valid."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from fedproxy import __version__
from fedproxy.config.advice import advise
from fedproxy.config.load import convert, parse
from fedproxy.config.model import Config
from fedproxy.config.units import duration
from tests import helm
from tests.kustomize import Object, by_kind, render, selectors

Read = Callable[[dict[str, Object]], Config]

ROOT = Path(__file__).parent.parent
CHART = ROOT / "conf" / "helm" / "fedproxy"
BASE = by_kind(render(ROOT / "conf" / "kubernetes" / "base"))
VERSIONS = ["1.30", "1.37"]  # the chart's oldest, and the newest
VARIABLES = {
    "FEDPROXY_ADMIN_TOKEN": "a" * 32,
    "FEDPROXY_COOKIE_SECRET": "b" * 32,
    "FEDPROXY_STORE_PASSWORD": "c" * 32,
    "FEDPROXY_EDGE_NAME": "fedproxy-7d9c-x2x",
}
IN_KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
CUSTOM = {"HTTPRoute", "PodMonitor", "PrometheusRule"}  # what Kubernetes' own schemas do not have
MEMBERS = {
    "first": {"url": "https://first.example.org", "prime": True, "hosts": ["first.example.org"]},
    "second": {"url": "https://second.example.org"},
}
#: The values of federation-redirect, with a host that another file of values takes out.
INCUMBENT: dict[str, Any] = {
    "enabled": True,
    "host": "mybinder.org",
    "check": {"period": 15, "jitter": 0.1, "retries": 5, "timeout": 5, "failed_period": 90},
    "load_balancer": "random",
    "pod_headroom": 10,
    "host_cookie_age_hours": 12,
    "image": {"name": "registry.example.org/fedproxy", "tag": "1.2"},
    "resources": {"requests": {"cpu": "10m", "memory": "50Mi"}, "limits": {"cpu": "100m", "memory": "250Mi"}},
    "hosts": {
        "hetzner-2i2c": {
            "prime": True,
            "url": "https://2i2c.mybinder.org",
            "weight": 50,
            "health": "https://2i2c.mybinder.org/health",
            "versions": "https://2i2c.mybinder.org/versions",
        },
        "hetzner-gesis": {"prime": False, "url": "https://gesis.mybinder.org", "weight": 50},
        "gone": None,
    },
    "nodeSelector": {"pool": "core"},
}
VALUES: dict[str, dict[str, Any]] = {
    "defaults": {"config": {"members": MEMBERS}},
    "store": {
        "config": {"members": MEMBERS},
        "store": {"redis": {"enabled": True}},
        "imagePullSecrets": [{"name": "registry"}],
        "nodeSelector": {"pool": "core"},
        "priorityClassName": "binderhub-core",
        "tolerations": [{"key": "a", "operator": "Exists"}],
    },
    "members": {"memberConfigMaps": ["first", "second"]},
    "incumbent": INCUMBENT,
    "everything": {
        "host": "mybinder.example.org",
        "config": {
            "members": MEMBERS,
            "timeouts": {"drain": "55m"},
            "limits": {"request_body": 2_000_000},
            "trusted_proxies": ["10.0.0.0/8"],
            "listen": [
                {"address": "0.0.0.0:8080"},
                {
                    "address": "0.0.0.0:8443",
                    "tls": {
                        "certificate": "/etc/fedproxy-tls/tls.crt",
                        "private_key": "/etc/fedproxy-tls/tls.key",
                    },
                },
            ],
        },
        "image": {"name": "registry.example.org/fedproxy", "tag": "1.2"},
        "imagePullSecrets": [{"name": "registry"}],
        "existingSecret": "tokens",
        "store": {
            "url": "rediss+sentinel://edge:${FEDPROXY_STORE_PASSWORD}@a.example.org:26380,b.example.org/main/1",
            "passwordSecret": {"name": "redis", "key": "password"},
            "ca": {"configMap": "trust", "key": "redis.pem"},
        },
        "autoscaling": {
            "targetConnections": 5000,
            "extraMetrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "memory",
                        "target": {"type": "Utilization", "averageUtilization": 80},
                    },
                }
            ],
        },
        "tls": {"existingSecret": "certificate"},
        "serviceAccount": {"name": "edge", "annotations": {"a": "b"}},
        "podLabels": {"team": "edge"},
        "podAnnotations": {"note": "x"},
        "priorityClassName": "binderhub-core",
        "nodeSelector": {"pool": "core"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"},
        ],
        "extraEnv": [{"name": "A", "value": "b"}],
        "extraVolumes": [{"name": "members", "configMap": {"name": "members"}}],
        "extraVolumeMounts": [{"name": "members", "mountPath": "/etc/members"}],
        "service": {"annotations": {"a": "b"}},
        "ingress": {
            "enabled": True,
            "className": "traefik",
            "annotations": {"a": "b"},
            "extraHosts": ["first.example.org"],
            "tlsSecret": "ingress",
        },
        "httpRoute": {"enabled": True, "annotations": {"a": "b"}, "parentRefs": [{"name": "public"}]},
        "networkPolicy": {
            "visitors": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "store": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "extraEgress": [{"ports": [{"protocol": "TCP", "port": 8443}]}],
            "extraIngress": [{"ports": [{"protocol": "TCP", "port": 9000}]}],
        },
        "podMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "authorization": {"credentials": {"name": "tokens", "key": "admin-token"}},
        },
        "prometheusRule": {"enabled": True, "runbookPrefix": "https://example.org/"},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Edge"}},
    },
}


@pytest.fixture(scope="module", autouse=True)
def needs_helm() -> None:
    """Skips where Helm cannot be had: in CI that is a failure."""
    try:
        helm.program()
    except OSError as error:
        pytest.skip(str(error))


def _helm(*arguments: str | Path, values: object = None) -> subprocess.CompletedProcess[str]:
    home = helm.program().parent
    # Not the user's own repositories, plugins and clusters.
    own = {f"HELM_{name}_HOME": str(home / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        [helm.program(), *arguments, *([] if values is None else ["--values", "-"])],
        env={**os.environ, **own, "KUBECONFIG": os.devnull},
        input=json.dumps(values),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _rendered(values: object, chart: Path = CHART, release: str = "fedproxy") -> list[Object]:
    result = _helm("template", release, chart, "--namespace", "prod", values=values)
    assert result.returncode == 0, result.stderr
    return [item for item in yaml.safe_load_all(result.stdout) if item]


def _refusal(values: object) -> str:
    result = _helm("template", "fedproxy", CHART, values=values)
    assert result.returncode != 0
    return result.stderr


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger chart that has this one, by the name of federation-redirect's values there."""
    folder = tmp_path_factory.mktemp("mybinder")
    dependency = {
        "name": "fedproxy",
        "alias": "federationRedirect",
        "version": __version__,
        "repository": f"file://{CHART}",
        "condition": "federationRedirect.enabled",
    }
    chart = {"apiVersion": "v2", "name": "mybinder", "version": "0.0.1", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (folder / "values.yaml").write_text(yaml.safe_dump({"federationRedirect": {"enabled": False}}))
    made = _helm("dependency", "update", "--skip-refresh", folder)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module", params=[*VALUES, "subchart"])
def objects(request: pytest.FixtureRequest, parent: Path) -> dict[str, Object]:
    """The rendered objects of a set of values, by kind."""
    if request.param != "subchart":
        return by_kind(_rendered(VALUES[request.param]))
    values = {"federationRedirect": INCUMBENT, "global": {"a": "b"}, "other": {"c": "d"}}
    return by_kind(_rendered(values, parent, "prod"))


def _pod(objects: dict[str, Object]) -> Any:
    return objects["Deployment"]["spec"]["template"]


def _container(objects: dict[str, Object]) -> Any:
    (container,) = _pod(objects)["spec"]["containers"]
    return container


def _text(objects: dict[str, Object]) -> str:
    text: str = objects["ConfigMap"]["data"]["config.yaml"]
    return text


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Reads the config of rendered objects, with certificates in place of the mounted ones."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    issued = authority.issue_cert("mybinder.example.org")
    issued.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    issued.private_key_pem.write_to_path(folder / "tls.key")

    def config(objects: dict[str, Object]) -> Config:
        text = _text(objects)
        for mount in _container(objects)["volumeMounts"]:
            if mount["name"] in ("tls", "store-ca"):
                text = text.replace(f"{mount['mountPath']}/", f"{folder}/")
        return parse(text, VARIABLES)

    return config


# The chart


def test_chart_has_the_version_of_the_program() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    # A larger chart adds these two.
    assert values.keys() == schema["properties"].keys() - {"global", "enabled"}
    for name, part in schema["properties"].items():
        if part.get("additionalProperties") is False:
            assert values[name].keys() == part["properties"].keys(), name


@pytest.mark.parametrize("name", VALUES)
def test_helm_has_nothing_to_say_against_the_chart(name: str) -> None:
    result = _helm("lint", "--strict", "--quiet", CHART, values=VALUES[name])
    assert (result.returncode, result.stdout) == (0, "")


def test_package_has_the_rules_and_the_dashboard_that_the_chart_links_to(parent: Path) -> None:
    files = {
        "alerts.yaml": ROOT / "conf" / "prometheus" / "alerts.yaml",
        "recording.yaml": ROOT / "conf" / "prometheus" / "recording.yaml",
        "dashboard.json": ROOT / "conf" / "grafana" / "fedproxy.json",
    }
    (package,) = (parent / "charts").iterdir()
    with tarfile.open(package) as packed:
        for name, original in files.items():
            assert (CHART / "files" / name).resolve() == original
            member = packed.extractfile(f"fedproxy/files/{name}")
            assert member is not None
            assert member.read() == original.read_bytes()


# What it renders


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema(objects: dict[str, Object], version: str) -> None:
    import kubernetes_validate  # takes its time

    for item in objects.values():
        if item["kind"] not in CUSTOM:
            kubernetes_validate.validate(item, version, strict=True)
        assert item["metadata"]["namespace"] == "prod"
        assert item["metadata"]["labels"]["app.kubernetes.io/name"] in ("fedproxy", "fedproxy-store")


def test_chart_makes_what_the_manifests_make() -> None:
    made = by_kind(_rendered(VALUES["defaults"]))
    assert made.keys() == BASE.keys() | {"ConfigMap", "Secret"}
    for kind, item in BASE.items():
        assert _bare(made[kind]) == item, kind


def test_chart_makes_the_store_that_the_manifests_make() -> None:
    made = by_kind(_rendered({**VALUES["defaults"], "store": {"redis": {"enabled": True}}}))
    base = by_kind(_rendered(VALUES["defaults"]))
    shipped = by_kind(render(ROOT / "conf" / "kubernetes" / "staging"))
    added = made.keys() - base.keys()
    assert added == {"DeploymentStore", "ServiceStore", "NetworkPolicyStore"}
    for kind in added:
        expected = {**shipped[kind], "metadata": {**shipped[kind]["metadata"]}}
        del expected["metadata"]["namespace"]
        assert _bare(made[kind]) == expected, kind
    (edge,) = shipped["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert _container(made)["env"] == edge["env"]
    # Here the edges' own policy has it.
    assert (
        _bare(made["NetworkPolicy"]["spec"]["egress"])[-1:]
        == shipped["NetworkPolicyToStore"]["spec"]["egress"]
    )


_OF_HELM = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
}


def _bare(value: Any) -> Any:
    """Without what only Helm adds, and without what an overlay of the manifests says."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    item = {key: _bare(each) for key, each in value.items() if key not in _OF_HELM}
    if item.get("namespace") == "prod":
        del item["namespace"]
    if item.pop("imagePullPolicy", None):
        item["image"] = item["image"].removesuffix(f":{__version__}")
    return item


def test_every_selector_finds_the_pods(objects: dict[str, Object]) -> None:
    labels = _pod(objects)["metadata"]["labels"]
    found = [
        *selectors(objects),
        *(item["spec"]["selector"]["matchLabels"] for kind, item in objects.items() if kind == "PodMonitor"),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in found)
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == _name(objects)
    assert _pod(objects)["spec"]["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]


def _name(objects: dict[str, Object]) -> str:
    name: str = objects["Deployment"]["metadata"]["name"]
    return name


def test_secret_of_the_variables_is_there_or_named(objects: dict[str, Object]) -> None:
    references = [
        each["valueFrom"]["secretKeyRef"]
        for pod in (objects["Deployment"], objects.get("DeploymentStore"))
        if pod is not None
        for each in pod["spec"]["template"]["spec"]["containers"][0]["env"]
        if "secretKeyRef" in each.get("valueFrom", {})
    ]
    asked = {(reference["name"], reference["key"]) for reference in references}
    if "Secret" in objects:
        name = objects["Secret"]["metadata"]["name"]
        made = {key: base64.b64decode(value) for key, value in objects["Secret"]["data"].items()}
        assert asked == {(name, key) for key in made}
        assert made.keys() - {"store-password"} == {"admin-token", "cookie-secret"}
        assert ("store-password" in made) == ("DeploymentStore" in objects)
        assert len(set(made.values())) == len(made)
        assert all(len(value) == 64 for value in made.values())
    else:
        assert asked == {("tokens", "admin-token"), ("tokens", "cookie-secret"), ("redis", "password")}


def test_secret_has_the_values_that_are_given() -> None:
    secret = {"adminToken": "t" * 20, "cookieSecret": "c" * 20, "storePassword": "p" * 20}
    made = by_kind(_rendered({**VALUES["store"], "secret": secret}))["Secret"]["data"]
    assert base64.b64decode(made["store-password"]).decode() == "p" * 20
    assert base64.b64decode(made["admin-token"]).decode() == "t" * 20
    assert base64.b64decode(made["cookie-secret"]).decode() == "c" * 20


def test_replica_that_goes_has_the_time_that_its_config_gives_to_streams(
    objects: dict[str, Object], read: Read
) -> None:
    before = _container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = _pod(objects)["spec"]["terminationGracePeriodSeconds"]
    assert grace == before + read(objects).timeouts.drain + 25


@pytest.mark.parametrize("drain", [0, 90, "90", "1500ms", "1.5h", "3300s", "2m", "1d"])
def test_grace_period_follows_every_way_to_write_a_duration(drain: str | int) -> None:
    values = {"config": {"members": MEMBERS, "timeouts": {"drain": drain}}, "preStopSeconds": 20}
    grace = _pod(by_kind(_rendered(values)))["spec"]["terminationGracePeriodSeconds"]
    seconds = duration(drain)
    assert seconds is not None
    assert seconds + 45 <= grace < seconds + 46


def test_ports_are_those_of_theread(objects: dict[str, Object], read: Read) -> None:
    ports = {port["name"]: port["containerPort"] for port in _container(objects)["ports"]}
    config = read(objects)
    public = {listener.address.port for listener in config.listen}
    assert public == {number for name, number in ports.items() if name != "admin"}
    assert (config.admin.address.host, config.admin.address.port) == ("0.0.0.0", ports["admin"])
    targets = {port["targetPort"] for port in objects["Service"]["spec"]["ports"]}
    assert targets == ports.keys() - {"admin"}


def test_mounts_have_their_volumes(objects: dict[str, Object]) -> None:
    volumes = {volume["name"] for volume in _pod(objects)["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in _container(objects)["volumeMounts"]}


def test_config_is_reloaded_and_not_restarted_for(objects: dict[str, Object]) -> None:
    assert not any("checksum" in key for key in _pod(objects)["metadata"].get("annotations", {}))
    (config,) = [volume for volume in _pod(objects)["spec"]["volumes"] if volume["name"] == "config"]
    assert config["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]


# The config


def test_config_is_valid_and_nothing_in_it_is_unwise(objects: dict[str, Object], read: Read) -> None:
    config = read(objects)
    assert {each.name for each in advise(config, IN_KUBERNETES)} <= {*config.silence}
    # Each of the silenced ones would be said.
    assert {each.name for each in advise(config, IN_KUBERNETES)} == {"admin-reachable", "drain-cut-off"}


def test_config_has_what_the_values_say(read: Read) -> None:
    values = VALUES["everything"]
    config = read(by_kind(_rendered(values)))
    assert config.public_url == "https://mybinder.example.org"
    assert config.members.keys() == MEMBERS.keys()
    assert config.limits.request_body == 2_000_000
    assert config.admin.token is not None
    assert config.affinity.secret is not None
    assert config.workers == 1


def test_values_of_federation_redirect_give_the_edge_that_its_own_config_gives(
    parent: Path, read: Read
) -> None:
    beside = {"admin": {"address": "0.0.0.0:8081"}, "silence": ["admin-reachable", "drain-cut-off"]}
    expected = parse(convert(json.dumps(INCUMBENT | beside)).text, {})
    assert read(by_kind(_rendered(INCUMBENT))) == expected
    in_larger = by_kind(_rendered({"federationRedirect": INCUMBENT}, parent, "prod"))
    assert read(in_larger) == expected
    assert expected.members.keys() == {"hetzner-2i2c", "hetzner-gesis"}
    # Not a worker for each processor of the node.
    assert _container(in_larger)["args"][-2:] == ["--workers", "1"]


def test_values_in_the_documents_work(parent: Path, read: Read) -> None:
    def fence(document: str, *words: str) -> Any:
        text = (ROOT / "docs" / document).read_text()
        (found,) = [
            each
            for each in re.findall(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
            if all(word in each for word in words)
        ]
        return yaml.safe_load(found)

    objects = by_kind(_rendered(fence("kubernetes.md", "# values.yaml")))
    assert read(objects).members.keys() == {"first", "second"}
    assert "Ingress" in objects

    for word, found in (
        ("redis: {enabled", "NetworkPolicyStore"),
        ("passwordSecret", "NetworkPolicy"),
        ("targetConnections", "HorizontalPodAutoscaler"),
    ):
        objects = by_kind(_rendered({**VALUES["defaults"], **fence("kubernetes.md", word)}))
        assert found in objects
        assert (read(objects).shared_store is None) == (word == "targetConnections")
    (text,) = fence("kubernetes.md", "kind: ConfigMap")["data"].values()
    assert parse(json.dumps({"members": {"a": yaml.safe_load(text)}}), {}).members["a"].weight == 50

    values = fence("migrating.md", "federationRedirect:", "fedproxy:")
    assert values["fedproxy"]["hosts"] == values["federationRedirect"]["hosts"]
    objects = by_kind(_rendered({"federationRedirect": values["fedproxy"]}, parent, "staging"))
    assert read(objects).members.keys() == {"staging"}
    assert objects["Service"]["metadata"]["name"] == "fedproxy"


@pytest.mark.parametrize("headroom", [0, None])
def test_headroom_of_nothing_is_another_value_than_none(headroom: int | None, read: Read) -> None:
    objects = by_kind(_rendered({**INCUMBENT, "pod_headroom": headroom}))
    assert read(objects).health.pod_headroom == (10 if headroom is None else 0)


def test_larger_chart_can_leave_it_out(parent: Path) -> None:
    assert _rendered({}, parent, "prod") == []


def _with_store(config: Object | None = None, **store: Any) -> dict[str, Any]:
    return {"config": {"members": MEMBERS, **(config or {})}, "store": store}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "no members: set config.members, or hosts"),
        ({"hosts": INCUMBENT["hosts"], "config": {"members": MEMBERS}}, "two ways to name the members"),
        (
            {"hosts": INCUMBENT["hosts"], "config": {"routes": []}},
            "config.routes has no meaning beside hosts",
        ),
        ({"config": {"members": MEMBERS, "timeouts": {"drain": "${D}"}}}, "terminationGracePeriodSeconds"),
        ({"config": {"members": MEMBERS}, "ingress": {"enabled": True}}, "host is needed"),
        ({"config": {"members": MEMBERS}, "host": "a", "httpRoute": {"enabled": True}}, "name the Gateway"),
        ({"config": {"members": MEMBERS}, "ingres": {}}, "'ingres' not allowed"),
        ({"hosts": {"a": {"weight": 1}}}, "missing property 'url'"),
        (_with_store(url="redis://a", redis={"enabled": True}), "are two stores"),
        (_with_store(url="redis.example.org:6379"), "store.url must be redis://HOST"),
        (_with_store(url="http://redis.example.org"), "store.url must be redis://HOST"),
        (_with_store(url="redis://"), "store.url must be redis://HOST"),
        (_with_store(url="redis://:secret@a"), "would be in a ConfigMap"),
        (_with_store(url="redis://edge:secret@a"), "would be in a ConfigMap"),
        (_with_store(url="redis://:${FEDPROXY_STORE_PASSWORD}@a"), "name the Secret"),
        (_with_store(url="redis://a", passwordSecret={"name": "b"}), "store.passwordSecret has no use"),
        (_with_store(url="redis://a", ca={"secret": "b"}), "with TLS"),
        (_with_store(redis={"enabled": True}, ca={"secret": "b"}), "with TLS"),
        (_with_store(url="rediss://a", ca={"secret": "b", "configMap": "c"}), "two places"),
        (_with_store(url="redis://a", config={"store": "redis://b"}), "two ways to name the store"),
        ({"hosts": INCUMBENT["hosts"], "store": {"url": "redis://a"}}, "store has no meaning beside hosts"),
        ({"hosts": INCUMBENT["hosts"], "memberConfigMaps": ["a"]}, "memberConfigMaps has no meaning"),
        (
            {"config": {"sources": {"directory": "/a"}}, "memberConfigMaps": ["a"]},
            "two places for members",
        ),
        ({**_with_store(redis={"enabled": True}), "secret": {"storePassword": "a/b"}}, "storePassword"),
        (_with_store(redis={"enabled": True, "maxmemory": "96Mi"}), "maxmemory"),
        ({"hosts": INCUMBENT["hosts"], "load_balancer": "fair"}, "load_balancer"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], said: str) -> None:
    assert said in _refusal(values)


# The store


def test_replicas_without_a_store_are_warned_of() -> None:
    def notes(**values: Any) -> str:
        result = _helm("install", "edge", CHART, "--dry-run=client", values={**VALUES["defaults"], **values})
        return result.stdout.partition("NOTES:")[2]

    assert "WARNING: the replicas share no store" in notes()
    assert "WARNING" in notes(autoscaling={"enabled": False})
    assert "WARNING" not in notes(autoscaling={"enabled": False}, replicas=1)
    for values in (
        {"store": {"redis": {"enabled": True}}},
        {"config": {"members": MEMBERS, "store": "redis://a"}},
    ):
        assert "WARNING" not in notes(**values)
        assert "-- fedproxy edges" in notes(**values)


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("redis://a", [6379]),
        ("redis://a:7000/2", [7000]),
        ("redis://[2001:db8::1]", [6379]),
        ("rediss://edge:${FEDPROXY_STORE_PASSWORD}@[2001:db8::1]:7000", [7000]),
        ("redis+sentinel://a,b:26380/main", [26379, 26380, 6379]),
        ("rediss+cluster://a:7000,b:7000,c", [7000, 6379]),
    ],
)
def test_way_to_a_store_of_its_own_is_open_and_its_config_is_valid(
    url: str, ports: list[int], read: Read
) -> None:
    made = by_kind(_rendered({**_with_store(url=url), "existingSecret": "tokens"}))
    (rule,) = [
        each
        for each in made["NetworkPolicy"]["spec"]["egress"]
        if each not in BASE["NetworkPolicy"]["spec"]["egress"]
    ]
    assert rule == {"ports": [{"protocol": "TCP", "port": port} for port in ports]}
    found = read(made).shared_store
    assert found is not None
    assert {port for _, port in found.servers} <= set(ports)
    assert not any(kind.endswith("Store") for kind in made)
    # Fleets of one server would hear each other's messages, whatever their databases.
    assert read(made).store_prefix == "fedproxy:prod:fedproxy"
    given = _with_store(url=url, config={"store_prefix": "binders"})
    assert read(by_kind(_rendered({**given, "existingSecret": "tokens"}))).store_prefix == "binders"


def test_config_names_the_store_of_the_chart_and_the_pod(read: Read) -> None:
    for release, name in (("fedproxy", "fedproxy-store"), ("x" * 50, f"{'x' * 50}-fedpro-store")):
        objects = by_kind(_rendered(VALUES["store"], release=release))
        config = read(objects)
        assert config.shared_store is not None
        assert config.shared_store.servers == ((name, 6379),)
        assert config.shared_store.password == VARIABLES["FEDPROXY_STORE_PASSWORD"]
        assert config.edge_name == VARIABLES["FEDPROXY_EDGE_NAME"]
        assert objects["ServiceStore"]["metadata"]["name"] == name
        labels = objects["DeploymentStore"]["spec"]["template"]["metadata"]["labels"]
        assert objects["ServiceStore"]["spec"]["selector"] == labels
        assert not any(selector.items() <= labels.items() for selector in selectors(objects))


def test_pod_of_the_store_runs_where_the_edges_run() -> None:
    objects = by_kind(_rendered(VALUES["store"]))
    store, edge = (objects[kind]["spec"]["template"]["spec"] for kind in ("DeploymentStore", "Deployment"))
    for key in ("nodeSelector", "imagePullSecrets", "priorityClassName", "securityContext"):
        assert store[key] == edge[key]
    assert store["tolerations"][-1:] == edge["tolerations"]


def test_authorities_of_the_store_are_where_the_config_looks(
    everything: dict[str, Object], read: Read
) -> None:
    config = read(everything)
    assert config.shared_store is not None
    assert (config.shared_store.kind, config.shared_store.tls) == ("sentinel", True)
    assert config.shared_store.ca is not None
    (mount,) = [each for each in _container(everything)["volumeMounts"] if each["name"] == "store-ca"]
    (volume,) = [each for each in _pod(everything)["spec"]["volumes"] if each["name"] == "store-ca"]
    assert volume["configMap"] == {"name": "trust", "items": [{"key": "redis.pem", "path": "ca.crt"}]}
    assert f"store_ca: {mount['mountPath']}/ca.crt" in _text(everything)
    assert "subPath" not in mount
    secret = by_kind(_rendered(_with_store(url="rediss://a", ca={"secret": "b"})))
    (volume,) = [each for each in _pod(secret)["spec"]["volumes"] if each["name"] == "store-ca"]
    assert volume["secret"] == {"secretName": "b", "items": [{"key": "ca.crt", "path": "ca.crt"}]}


def test_members_come_from_config_maps_that_may_be_missing(read: Read) -> None:
    objects = by_kind(_rendered(VALUES["members"]))
    config = read(objects)
    assert config.members == {}
    (mount,) = [each for each in _container(objects)["volumeMounts"] if each["name"] == "member-files"]
    assert str(config.sources.directory) == mount["mountPath"]
    (volume,) = [each for each in _pod(objects)["spec"]["volumes"] if each["name"] == "member-files"]
    sources = [{"configMap": {"name": name, "optional": True}} for name in ("first", "second")]
    assert volume["projected"]["sources"] == sources
    both = {**VALUES["members"], "config": {"members": MEMBERS, "sources": {"dns": "a.example.org"}}}
    config = read(by_kind(_rendered(both)))
    assert config.sources.dns == ("a.example.org",)
    assert str(config.sources.directory) == mount["mountPath"]


# What is on request


def test_autoscaler_follows_connections_too(everything: dict[str, Object]) -> None:
    cpu, connections, memory = everything["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert [cpu] == BASE["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert connections["pods"] == {
        "metric": {"name": "fedproxy_downstream_connections"},
        "target": {"type": "AverageValue", "averageValue": "5000"},
    }
    assert memory["resource"]["name"] == "memory"


@pytest.fixture(scope="module")
def everything() -> dict[str, Object]:
    return by_kind(_rendered(VALUES["everything"]))


def test_visitors_of_all_hosts_are_sent_to_the_service(everything: dict[str, Object]) -> None:
    ingress = everything["Ingress"]["spec"]
    hosts = ["mybinder.example.org", "first.example.org"]
    assert [rule["host"] for rule in ingress["rules"]] == hosts
    assert ingress["tls"] == [{"secretName": "ingress", "hosts": hosts}]
    for rule in ingress["rules"]:
        (path,) = rule["http"]["paths"]
        assert path["backend"]["service"] == {"name": _name(everything), "port": {"name": "http"}}
    route = everything["HTTPRoute"]["spec"]
    assert route["hostnames"] == hosts[:1]
    (rule,) = route["rules"]
    assert rule["backendRefs"] == [{"name": _name(everything), "port": 80}]
    assert rule["timeouts"] == {"request": "0s"}


def test_prometheus_operator_scrapes_the_admin_listener(everything: dict[str, Object]) -> None:
    (endpoint,) = everything["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")
    assert "admin" in {port["name"] for port in _container(everything)["ports"]}
    # As conf/prometheus/kubernetes.yaml names them.
    jobs = {each["targetLabel"]: each.get("replacement") for each in endpoint["relabelings"]}
    assert jobs == {"job": "fedproxy-prod", "instance": None}
    assert endpoint["authorization"] == {"credentials": {"name": "tokens", "key": "admin-token"}}
    # Otherwise the pods would be scraped twice.
    assert _pod(everything)["metadata"]["annotations"] == {"note": "x"}


def test_rules_and_dashboard_are_those_of_the_repository(everything: dict[str, Object]) -> None:
    groups: list[Any] = []
    for name in ("recording.yaml", "alerts.yaml"):
        text = (ROOT / "conf" / "prometheus" / name).read_text()
        groups += yaml.safe_load(
            text.replace("runbook_url: docs/", "runbook_url: https://example.org/docs/")
        )["groups"]
    assert everything["PrometheusRule"]["spec"]["groups"] == groups
    dashboard = everything["ConfigMapDashboard"]
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = dashboard["data"].values()
    assert json.loads(text) == json.loads((ROOT / "conf" / "grafana" / "fedproxy.json").read_text())


def test_network_policy_adds_rules_and_limits_visitors(everything: dict[str, Object]) -> None:
    policy = everything["NetworkPolicy"]["spec"]
    assert policy["ingress"][0]["from"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    assert policy["ingress"][-1] == {"ports": [{"protocol": "TCP", "port": 9000}]}
    store = [{"protocol": "TCP", "port": port} for port in (26380, 26379, 6379)]
    assert policy["egress"][2] == {"ports": store, "to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}
    assert policy["egress"][:2] == BASE["NetworkPolicy"]["spec"]["egress"]
    assert policy["egress"][-1] == {"ports": [{"protocol": "TCP", "port": 8443}]}


def test_nobody_reaches_the_admin_listener_where_nobody_is_named() -> None:
    values = {**VALUES["defaults"], "networkPolicy": {"admin": []}}
    (rule,) = by_kind(_rendered(values))["NetworkPolicy"]["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == {8080, 8443}


def test_what_is_off_is_not_made() -> None:
    off = ("autoscaling", "podDisruptionBudget", "networkPolicy")
    values = {**VALUES["defaults"], **{name: {"enabled": False} for name in off}, "replicas": 4}
    objects = by_kind(_rendered({**values, "serviceAccount": {"create": False}}))
    assert objects.keys() == {"ConfigMap", "Secret", "Service", "Deployment"}
    assert objects["Deployment"]["spec"]["replicas"] == 4
    assert _pod(objects)["spec"]["serviceAccountName"] == "default"


def test_notes_name_the_deployment_and_what_is_left_to_do() -> None:
    result = _helm("install", "edge", CHART, "--dry-run=client", values=INCUMBENT)
    notes = result.stdout.partition("NOTES:")[2]
    assert "deployment/edge-fedproxy -- fedproxy members" in notes
    assert "Nothing sends visitors to it yet" in notes
    assert "trusted_proxies is empty" in notes
    assert "`fedproxy drain` are refused" in notes
