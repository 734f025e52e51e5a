"""The Kubernetes manifests fit the schemas, each other, the image and the configs; the units fit systemd."""

from __future__ import annotations

import asyncio
import configparser
import os
import re
import shutil
import subprocess
import sys
from asyncio.subprocess import DEVNULL
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError

from fedproxy import __version__
from fedproxy.config.load import convert, load, parse
from fedproxy.config.model import Config
from tests.kustomize import Object, by_kind, render, selectors
from tests.rig.redis import REDIS, redis

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "conf" / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in KUBERNETES.glob("*/config.yaml"))
VERSIONS = ["1.30", "1.37"]  # the oldest that has the preStop sleep without a feature gate, and the newest
SECRETS = {
    "FEDPROXY_ADMIN_TOKEN": "a" * 32,
    "FEDPROXY_COOKIE_SECRET": "b" * 32,
    "FEDPROXY_STORE_PASSWORD": "c" * 32,
}
VARIABLES = {**SECRETS, "FEDPROXY_EDGE_NAME": "fedproxy-7d9c-x2x"}
SPARE = 15  # seconds between the end of the drain and SIGKILL

overlay = pytest.mark.parametrize("name", OVERLAYS)


@cache
def _objects(name: str) -> dict[str, Object]:
    """The rendered objects by kind."""
    return by_kind(render(KUBERNETES / name))


def _pod(name: str) -> Any:
    return _objects(name)["Deployment"]["spec"]["template"]


def _container(name: str) -> Any:
    (container,) = _pod(name)["spec"]["containers"]
    return container


def _ports(name: str) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in _container(name)["ports"]}


def _config(name: str) -> Config:
    return load(KUBERNETES / name / "config.yaml", VARIABLES)


def _validate(item: Object, version: str) -> None:
    import kubernetes_validate  # takes its time

    kubernetes_validate.validate(item, version, strict=True)


def test_there_are_overlays_for_staging_and_production() -> None:
    assert OVERLAYS == ["production", "staging"]


@overlay
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema(name: str, version: str) -> None:
    for item in _objects(name).values():
        _validate(item, version)


def test_key_that_kubernetes_does_not_know_is_found() -> None:
    with pytest.raises(Exception, match="replica"):
        _validate({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replica": 1}}, VERSIONS[-1])


@overlay
def test_every_object_is_in_the_namespace_of_the_overlay(name: str) -> None:
    (namespace,) = {item["metadata"]["namespace"] for item in _objects(name).values()}
    assert namespace == {"production": "prod", "staging": "staging"}[name]


@overlay
def test_every_selector_finds_the_pods(name: str) -> None:
    objects = _objects(name)
    labels = _pod(name)["metadata"]["labels"]
    spreads = _pod(name)["spec"]["topologySpreadConstraints"]
    found = [
        *selectors(objects),
        *(spread["labelSelector"]["matchLabels"] for spread in spreads),
    ]
    assert all(selector and selector.items() <= labels.items() for selector in found)
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = objects["Deployment"]
    assert scaled["kind"] == "Deployment"
    assert scaled["name"] == deployment["metadata"]["name"]
    assert scaled["apiVersion"] == deployment["apiVersion"]
    assert _pod(name)["spec"]["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]


@overlay
def test_replicas_are_the_autoscalers_and_spread(name: str) -> None:
    assert "replicas" not in _objects(name)["Deployment"]["spec"]
    scale = _objects(name)["HorizontalPodAutoscaler"]["spec"]
    assert 2 <= scale["minReplicas"] < scale["maxReplicas"]
    disruption = _objects(name)["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert 1 <= disruption < scale["minReplicas"]
    assert scale["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 3600
    spreads = _pod(name)["spec"]["topologySpreadConstraints"]
    keys = {spread["topologyKey"] for spread in spreads}
    assert keys == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}


@overlay
def test_ports_are_those_of_the_config(name: str) -> None:
    config = _config(name)
    public = [listener.address for listener in config.listen]
    assert [(address.host, address.port) for address in public] == [("0.0.0.0", _ports(name)["http"])]
    assert (config.admin.address.host, config.admin.address.port) == ("0.0.0.0", _ports(name)["admin"])
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert _container(name)[probe]["httpGet"]["port"] == "admin"
    annotations = _pod(name)["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(_ports(name)["admin"])


@overlay
def test_admin_listener_is_not_for_everybody(name: str) -> None:
    ports = _ports(name)
    assert [port["targetPort"] for port in _objects(name)["Service"]["spec"]["ports"]] == ["http"]
    open_to_all = set()
    for rule in _objects(name)["NetworkPolicy"]["spec"]["ingress"]:
        numbers = {port["port"] for port in rule["ports"]}
        assert all(isinstance(number, int) for number in numbers)
        if rule.get("from"):
            assert numbers == {ports["admin"]}
        else:
            open_to_all |= numbers
    assert open_to_all == {ports["http"], 8443}


@overlay
def test_config_is_mounted_so_that_a_change_arrives(name: str) -> None:
    made = _objects(name)["ConfigMap"]
    volumes = {volume["name"]: volume for volume in _pod(name)["spec"]["volumes"]}
    mounts = {mount["name"]: mount for mount in _container(name)["volumeMounts"]}
    assert set(volumes) == set(mounts)
    assert volumes["config"]["configMap"] == {"name": made["metadata"]["name"]}
    assert "subPath" not in mounts["config"]
    (key,) = made["data"]
    assert _container(name)["args"] == ["serve", "--config", f"{mounts['config']['mountPath']}/{key}"]


@overlay
def test_variables_of_the_config_come_from_the_secret_that_the_documents_make(name: str) -> None:
    text = _objects(name)["ConfigMap"]["data"]["config.yaml"]
    variables = {variable["name"]: variable["valueFrom"] for variable in _container(name)["env"]}
    assert set(re.findall(r"\$\{(\w+)\}", text)) == set(variables) == set(VARIABLES)
    assert variables.pop("FEDPROXY_EDGE_NAME") == {"fieldRef": {"fieldPath": "metadata.name"}}
    given = {variable: source["secretKeyRef"] for variable, source in variables.items()}
    assert set(given) == set(SECRETS)
    document = (ROOT / "docs" / "kubernetes.md").read_text()
    (secret,) = {reference["name"] for reference in given.values()}
    assert f"create secret generic {secret} " in document
    assert all(f"--from-literal={reference['key']}=" in document for reference in given.values())
    # A Service of this name would put FEDPROXY_PORT and others beside them.
    assert _pod(name)["spec"]["enableServiceLinks"] is False


@overlay
def test_replica_that_goes_has_the_time_that_its_config_gives_to_streams(name: str) -> None:
    before = _container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before >= 10
    drain = _config(name).timeouts.drain
    assert _pod(name)["spec"]["terminationGracePeriodSeconds"] >= before + drain + SPARE


@overlay
def test_pod_meets_the_restricted_security_standard(name: str) -> None:
    spec = _pod(name)["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert _container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("hostPath" in volume for volume in spec["volumes"])


@overlay
def test_image_is_of_this_version_and_its_user_and_directories_are_those_of_the_manifest(name: str) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert _container(name)["image"].endswith(f"/fedproxy:{__version__}")
    (user, group) = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[0]
    context = _pod(name)["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    mounts = {mount["name"]: mount["mountPath"] for mount in _container(name)["volumeMounts"]}
    assert f"STATE_DIRECTORY={mounts['state']}" in dockerfile


def test_production_has_the_members_of_the_example_config() -> None:
    example = load(ROOT / "conf" / "mybinder.yaml", SECRETS).members
    keys = {"url", "weight", "prime", "hosts", "run_by", "funded_by", "contact"}
    members = _config("production").members
    assert {name: member.model_dump(include=keys) for name, member in members.items()} == {
        name: member.model_dump(include=keys) for name, member in example.items()
    }


@pytest.mark.parametrize("file", ["mybinder.yaml", *(f"kubernetes/{name}/config.yaml" for name in OVERLAYS)])
def test_edge_answers_by_itself_what_an_imported_config_does(file: str) -> None:
    imported = parse(convert('{"hosts": {"a": {"url": "https://a", "prime": true}}}').text, {})
    shipped = load(ROOT / "conf" / file, VARIABLES)

    def answered(config: Config) -> set[tuple[str, str | None, int | None]]:
        return {(route.path, route.redirect, route.status) for route in config.routes if route.status}

    # There the edge's own metrics are on the public port, as federation-redirect had them.
    assert answered(shipped) == answered(imported) | {("/metrics", None, 404)}
    assert [route.path for route in imported.routes if route.page] == ["/metrics"]
    # In the old mode launches are redirected, and all else is prime's: here both go to the visitor's member.
    passed_on = [(route.path, route.to, route.mode) for route in shipped.routes if not route.status]
    assert passed_on in ([], [("/build/*", "members", "proxy")])


def test_tls_component_adds_the_certificate_and_its_port(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path, dirs_exist_ok=True)
    said = tmp_path / "staging" / "kustomization.yaml"
    said.write_text(said.read_text().replace("components:\n", "components:\n  - ../tls\n"))
    objects = by_kind(render(tmp_path / "staging"))
    for item in objects.values():
        _validate(item, VERSIONS[-1])
    spec = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": 8080,
        "admin": 8081,
        "https": 8443,
    }
    assert {volume["name"] for volume in spec["volumes"]} == {
        mount["name"] for mount in container["volumeMounts"]
    }
    assert [port["targetPort"] for port in objects["Service"]["spec"]["ports"]] == ["http", "https"]


# The store


@overlay
def test_edges_find_the_store_and_nobody_else_does(name: str) -> None:
    objects = _objects(name)
    config = _config(name)
    assert config.shared_store is not None
    ((host, port),) = config.shared_store.servers
    service = objects["ServiceStore"]
    assert host == service["metadata"]["name"]
    assert [each["port"] for each in service["spec"]["ports"]] == [port]
    assert config.shared_store.password == SECRETS["FEDPROXY_STORE_PASSWORD"]
    assert config.edge_name == VARIABLES["FEDPROXY_EDGE_NAME"]

    edges = _pod(name)["metadata"]["labels"]
    store = objects["DeploymentStore"]["spec"]["template"]["metadata"]["labels"]
    ports = [{"protocol": "TCP", "port": port}]
    policy = objects["NetworkPolicyStore"]["spec"]
    assert policy["ingress"] == [{"ports": ports, "from": [{"podSelector": {"matchLabels": edges}}]}]
    assert policy["egress"] == []
    way = objects["NetworkPolicyToStore"]["spec"]
    assert way["podSelector"]["matchLabels"] == edges
    assert way["egress"] == [{"ports": ports, "to": [{"podSelector": {"matchLabels": store}}]}]
    for each in (policy["podSelector"], objects["DeploymentStore"]["spec"]["selector"]):
        assert each == {"matchLabels": store}
    assert service["spec"]["selector"] == store
    # No visitor is sent to the store, and no budget or autoscaler counts it.
    assert all(not selector.items() <= store.items() for selector in selectors(objects))


@overlay
def test_pod_of_the_store_meets_the_restricted_security_standard_and_is_alone(name: str) -> None:
    deployment = _objects(name)["DeploymentStore"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    spec = deployment["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == _pod(name)["spec"]["securityContext"]
    assert container["securityContext"] == _container(name)["securityContext"]
    # Nothing is kept, so nothing is mounted.
    assert "volumes" not in spec
    memory = int(container["args"][container["args"].index("--maxmemory") + 1].removesuffix("mb"))
    assert memory <= 0.6 * int(container["resources"]["limits"]["memory"].removesuffix("Mi"))


@REDIS
@pytest.mark.parametrize("password", ["0aZ9" * 16, "-._~"])
async def test_edge_gets_on_with_a_store_that_was_started_as_the_manifest_says(password: str) -> None:
    (container,) = _objects("production")["DeploymentStore"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["valkey-server"]
    (variable,) = container["env"]
    options = [each.replace(f"$({variable['name']})", password) for each in container["args"]]
    async with redis(*options, login=f":{password}@") as server:
        with pytest.raises(AuthenticationError):
            await server.client.ping()
        probe = container["livenessProbe"]["exec"]["command"]
        command = ["redis-cli", "-p", str(server.port), *probe[1:]]
        for given, status in ((password, 0), ("", 1)):
            environment = {**os.environ, variable["name"]: given}
            asked = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=DEVNULL, stderr=DEVNULL
            )
            assert await asked.wait() == status
        store = server.store()
        await store.open("edge", lambda _topic, _content: None, lambda: None)
        try:
            assert (await store.beat(b"{}", 1, True)).edges == 1
            client = Redis(port=server.port, password=password, decode_responses=True)
            policy = await client.config_get("maxmemory*")
            assert policy["maxmemory-policy"] == "noeviction"
            assert policy["maxmemory"] == str(96 << 20)
            await client.aclose()
        finally:
            await store.close()


@pytest.mark.parametrize("extra", ["nameSuffix: -x", "commonLabels: {a: b}", "replicas: []"])
def test_renderer_refuses_what_it_does_not_know(tmp_path: Path, extra: str) -> None:
    shutil.copytree(KUBERNETES, tmp_path, dirs_exist_ok=True)
    said = tmp_path / "staging" / "kustomization.yaml"
    said.write_text(f"{said.read_text()}{extra}\n")
    with pytest.raises(AssertionError, match="does not know"):
        render(tmp_path / "staging")


def test_no_file_of_the_manifests_is_left_out() -> None:
    named = set()
    for path in KUBERNETES.glob("*/kustomization.yaml"):
        said = yaml.safe_load(path.read_text())
        files = [
            *said.get("resources", []),
            *(patch["path"] for patch in said.get("patches", [])),
            *(name for made in said.get("configMapGenerator", []) for name in made["files"]),
        ]
        named |= {(path.parent / file).resolve() for file in [*files, path.name]}
    assert {path.resolve() for path in KUBERNETES.rglob("*") if path.is_file()} <= named


def _unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, each with its values in order."""
    settings: dict[str, list[str]] = {}
    for line in (ROOT / "conf" / name).read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            settings.setdefault(key, []).append(value)
    return settings


def test_unit_waits_longer_than_the_drain_and_leaves_workers_to_their_parent() -> None:
    unit = _unit("fedproxy.service")
    drain = load(ROOT / "conf" / "mybinder.yaml", SECRETS).timeouts.drain
    assert int(unit["TimeoutStopSec"][0]) >= drain + SPARE
    assert unit["KillMode"] == ["mixed"]
    assert unit["Type"] == ["notify"]


def test_socket_unit_listens_where_the_example_config_does() -> None:
    listen = [str(listener.address) for listener in load(ROOT / "conf" / "mybinder.yaml", SECRETS).listen]
    assert _unit("fedproxy.socket")["ListenStream"] == listen


@pytest.mark.parametrize("name", ["fedproxy.service", "fedproxy.socket"])
def test_unit_has_the_sections_of_its_kind(name: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.read_string((ROOT / "conf" / name).read_text())
    assert parser.sections() == ["Unit", name.partition(".")[2].capitalize(), "Install"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_has_nothing_to_say_against_the_units(tmp_path: Path) -> None:
    for name in ("fedproxy.service", "fedproxy.socket"):
        text = (ROOT / "conf" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/fedproxy/bin/fedproxy", sys.executable))
    units = [str(tmp_path / name) for name in ("fedproxy.service", "fedproxy.socket")]
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    # Tenths of the exposure level, 100 at most; "OK" ends at 30.
    secure = ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", units[0]]
    assert subprocess.run(secure, capture_output=True, check=False).returncode == 0
