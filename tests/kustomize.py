"""What `kubectl kustomize` makes of a directory, for as much of kustomize as this project's files use.

Whatever else a file says is an AssertionError, so that a test cannot pass on something that was skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

# By which field strategic merge tells the items of a list; and the lists that a patch replaces whole.
_KEYS = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
_SECOND = {"-dashboard": "Dashboard", "-to-store": "ToStore", "-store": "Store"}
_WHOLE = {"args", "command", "drop", "metrics", "policies", "policyTypes"}


def by_kind(items: Sequence[Object]) -> dict[str, Object]:
    """By kind, as there is one of each. What only some installations have is told by the end of its name."""
    named = {}
    for item in items:
        ends = [end for end in _SECOND if item["metadata"]["name"].endswith(end)]
        named[item["kind"] + "".join(_SECOND[end] for end in ends[:1])] = item
    assert len(named) == len(items)
    return named


def selectors(objects: dict[str, Object]) -> list[dict[str, str]]:
    """By which labels these objects, by kind, find the pods of the Deployment."""
    return [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]


def render(directory: Path) -> list[Object]:
    """The objects of a kustomization, in the order of its resources."""
    return _render(directory, [])


def _render(directory: Path, objects: list[Object]) -> list[Object]:
    said = yaml.safe_load((directory / "kustomization.yaml").read_text())
    kind = said.pop("kind")
    version = {"Kustomization": "v1beta1", "Component": "v1alpha1"}[kind]
    assert said.pop("apiVersion") == f"kustomize.config.k8s.io/{version}"
    for path in said.pop("resources", []):
        objects = objects + _resource(directory / path)
    objects += _config_maps(directory, said.pop("configMapGenerator", []), said.pop("generatorOptions", {}))
    for path in said.pop("components", []):
        objects = _render(directory / path, objects)
    for patch in said.pop("patches", []):
        assert set(patch) == {"path"}, patch
        _apply(objects, yaml.safe_load((directory / patch["path"]).read_text()))
    namespace = said.pop("namespace", None)
    for image in said.pop("images", []):
        assert set(image) == {"name", "newName", "newTag"}, image
        _rename(objects, image["name"], f"{image['newName']}:{image['newTag']}")
    if namespace is not None:
        for item in objects:
            item["metadata"]["namespace"] = namespace
    assert said == {}, f"{directory}: the renderer of the tests does not know {sorted(said)}"
    return objects


def _resource(path: Path) -> list[Object]:
    if path.is_dir():
        return render(path)
    return list(yaml.safe_load_all(path.read_text()))


def _config_maps(directory: Path, generators: list[Object], options: Object) -> list[Object]:
    made = []
    for generator in generators:
        assert set(generator) == {"name", "files"}, generator
        assert set(options) == {"disableNameSuffixHash", "labels"}, options
        assert options["disableNameSuffixHash"] is True
        made.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": generator["name"], "labels": options["labels"]},
                "data": {name: (directory / name).read_text() for name in generator["files"]},
            }
        )
    return made


def _apply(objects: list[Object], patch: Object) -> None:
    def identity(item: Object) -> tuple[str, str, str]:
        return item["apiVersion"], item["kind"], item["metadata"]["name"]

    (patched,) = [item for item in objects if identity(item) == identity(patch)]
    _merge(patched, patch)


def _merge(item: Object, patch: Object) -> None:
    for name, value in patch.items():
        assert not name.startswith("$"), name
        old = item.get(name)
        if value is None:
            item.pop(name, None)
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        elif isinstance(old, list) and isinstance(value, list) and name not in _WHOLE:
            _merge_lists(old, value, _key(name, value))
        else:
            item[name] = value


def _key(name: str, items: list[Object]) -> str:
    if name == "ports":
        return "containerPort" if "containerPort" in items[0] else "port"
    assert name in _KEYS, f"the renderer of the tests does not know how lists of {name} are merged"
    return _KEYS[name]


def _merge_lists(items: list[Object], patches: list[Object], key: str) -> None:
    by_key = {item[key]: item for item in items}
    for patch in patches:
        if patch[key] in by_key:
            _merge(by_key[patch[key]], patch)
        else:
            items.append(patch)


def _rename(objects: list[Object], name: str, image: str) -> None:
    for item in objects:
        template = item.get("spec", {}).get("template", {})
        for container in template.get("spec", {}).get("containers", []):
            if container["image"] == name:
                container["image"] = image
