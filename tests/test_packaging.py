"""What is released has what belongs into it, and the image is built from what is locked."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from fedproxy import __version__
from tests.locks import builders

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = ROOT / "requirements"
LOCKS = {
    "image.txt": [*PROJECT["dependencies"], *EXTRAS["otel"], *EXTRAS["redis"]],
    "build.txt": builders(),
}
SUPPORTED = ["3.11", "3.12", "3.13", "3.14"]


# What is released


def _build(tree: Path, target: str, into: Path) -> Path:
    """Builds `tree` with the installed backend: an environment for each build would take ten seconds."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", into],
        cwd=tree,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (made,) = into.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return made


def _files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def _tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("only git knows which files are the project's")
    return {name for name in listed.stdout.split("\0") if (ROOT / name).is_file()}


def test_sdist_has_the_project_and_no_stray_folder_and_gives_the_wheel_that_the_tree_gives(
    tmp_path: Path,
) -> None:
    tree = tmp_path / "tree"
    project = _tracked()
    for name in project:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name, follow_symlinks=False)
    for stray in ("fedproxy/x.py", "docs/y.md", "tests/test_z.py", "conf/a.yaml", "README.md", "Makefile"):
        (tree / "v" / stray).parent.mkdir(parents=True, exist_ok=True)
        (tree / "v" / stray).touch()
    # What is built, and git ignores.
    (tree / "docs" / "_build").mkdir()
    (tree / "docs" / "_build" / "index.html").touch()

    with tarfile.open(_build(tree, "sdist", tmp_path / "sdist")) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if not path.is_dir()}
    # What only the forge reads, or a committer, is not released.
    forge = {name for name in project if name.startswith((".github/", ".pre-commit-config"))}
    assert found == project - forge | {"PKG-INFO"}

    wheel = _files(_build(unpacked, "wheel", tmp_path / "from-sdist"))
    assert wheel == _files(_build(tree, "wheel", tmp_path / "from-tree"))
    modules = {name for name in project if name.startswith("fedproxy/")}
    assert {name for name in wheel if ".dist-info/" not in name} == modules
    for name in PROJECT["license-files"]:
        assert f"fedproxy-{__version__}.dist-info/licenses/{name}" in wheel
    assert {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE"} == {
        Path(name).name for name in wheel if name.startswith("fedproxy/web/static/vendor/")
    }


def test_versions_of_python_are_the_same_everywhere() -> None:
    minor = {
        found.group(1)
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    }
    assert minor == set(SUPPORTED)
    assert PROJECT["requires-python"] == f">={SUPPORTED[0]}"
    built = PYPROJECT["tool"]["cibuildwheel"]["build"]
    assert built == [f"cp{version.replace('.', '')}-manylinux*" for version in SUPPORTED]


def test_license_is_an_expression_with_its_files() -> None:
    files = ["LICENSE", "fedproxy/web/static/vendor/LICENSE"]
    assert (PROJECT["license"], PROJECT["license-files"]) == ("BSD-3-Clause AND MIT", files)
    # What is served as others made it has their licence.
    for name, words in zip(files, ("BSD 3-Clause License", "The MIT License"), strict=True):
        assert (ROOT / name).read_text().startswith(words)
    assert not any(line.startswith("License ::") for line in PROJECT["classifiers"])


def test_urls_are_secure() -> None:
    assert PROJECT["urls"]
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())


def test_compiled_wheels_are_compiled_and_tested_to_be() -> None:
    config = PYPROJECT["tool"]["cibuildwheel"]
    assert config["environment"] == {"HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
    assert config["linux"]["archs"] == ["x86_64", "aarch64"]
    _, _, test = config["test-command"].partition(" | ")
    for said, status in ((f"fedproxy, version {__version__} (compiled)", 0), ("(not compiled)", 1)):
        grep = subprocess.run(test, shell=True, input=said, text=True, capture_output=True, check=False)
        assert grep.returncode == status


def test_every_extra_that_a_document_names_exists() -> None:
    named: set[str] = set()
    for pattern in ("*.md", "docs/*.md", "docs/[a-z]*/*.md", "conf/*.yaml", "fedproxy/**/*.py", "Dockerfile"):
        for path in ROOT.glob(pattern):
            for extras in re.findall(r"(?:fedproxy|\.)\[([a-z, ]+)\]", path.read_text()):
                named |= {extra.strip() for extra in extras.split(",")}
    assert "otel" in named
    assert named <= EXTRAS.keys()


# What the image is built from


def _locked(name: str) -> dict[str, Version]:
    """The versions in a lock file; each has hashes."""
    text = re.sub(r"^\s*#.*\n", "", (REQUIREMENTS / name).read_text(), flags=re.MULTILINE)
    found: dict[str, Version] = {}
    for line in text.replace("\\\n", "").splitlines():
        package, *hashes = line.split()
        named, _, version = package.partition("==")
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
        found[canonicalize_name(named)] = Version(version)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_locked_versions_are_those_that_the_project_allows(name: str) -> None:
    locked = _locked(name)
    for requirement in map(Requirement, LOCKS[name]):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_no_other_file_is_there_and_no_file_names_an_index() -> None:
    assert {path.name for path in REQUIREMENTS.iterdir()} == set(LOCKS)
    for name in LOCKS:
        assert not re.search(r"https?:|file:|^\s*-[^-]|--(?!hash=)", (REQUIREMENTS / name).read_text())


def test_versions_are_locked_for_the_python_of_the_image() -> None:
    (image,) = re.findall(r"^ARG PYTHON=(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (locked,) = re.findall(
        r"^LOCK := .* --python-version (\S+) ", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert locked == image
    assert Version(image) in SpecifierSet(PROJECT["requires-python"])


def test_bill_of_materials_has_the_program_and_all_that_it_needs(tmp_path: Path) -> None:
    """The command of the image, here for the environment of the tests."""
    text = (ROOT / "Dockerfile").read_text()
    (options,) = re.findall(
        r"cyclonedx-py environment (.+) --output-file /opt/fedproxy/\S+ /opt/fedproxy", text
    )
    file = tmp_path / "bill.json"
    # Validating takes longer than all else.
    last = ["--no-validate", "--output-file", file, sys.executable]
    command = [sys.executable, "-m", "cyclonedx_py", "environment", *options.split(), *last]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    bill = json.loads(file.read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "fedproxy"
    parts = {canonicalize_name(part["name"]): Version(part["version"]) for part in bill["components"]}
    for requirement in map(Requirement, LOCKS["image.txt"]):
        assert parts[canonicalize_name(requirement.name)] in requirement.specifier
    graph = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    assert graph[bill["metadata"]["component"]["bom-ref"]]
