"""What the forge reads: workflows, forms and the like are valid, and ask for what the project has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator

ROOT = Path(__file__).parent.parent
FORGE = ROOT / ".github"
WORKFLOWS = sorted(FORGE.glob("workflows/*.yml"))
FORMS = sorted(path for path in FORGE.glob("ISSUE_TEMPLATE/*.yml") if path.stem != "config")
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": FORMS,
    "github-issue-config": [FORGE / "ISSUE_TEMPLATE" / "config.yml"],
    "dependabot": [FORGE / "dependabot.yml"],
}

pytestmark = pytest.mark.skipif(not FORGE.is_dir(), reason="an sdist has nothing of the forge")


def _read(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_have_the_form_that_the_forge_wants(name: str) -> None:
    validator = Draft7Validator(get_builtin_schema(f"vendor.{name}"))
    for path in SCHEMAS[name]:
        # YAML reads the key `on` as true.
        read = {"on" if key is True else key: value for key, value in _read(path).items()}
        assert [error.message for error in validator.iter_errors(read)] == [], path.name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_asks_for_no_more_than_it_needs(path: Path) -> None:
    workflow = _read(path)
    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    for job in workflow["jobs"].values():
        assert job["permissions"]
        # A job that calls a workflow has its time limits.
        assert "timeout-minutes" in job or "uses" in job
        for step in job.get("steps", ()):
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1")), step
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            # What others write, such as the title of a pull request, is never a part of a script.
            assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_calls_what_is_there(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = _read(path)["jobs"]
    for job in jobs.values():
        needs = job.get("needs", [])
        assert {needs} if isinstance(needs, str) else set(needs) <= jobs.keys()
        assert (ROOT / job.get("uses", "Makefile")).is_file()
        for step in job.get("steps", ()):
            run = step.get("run", "")
            assert set(re.findall(r"\bmake ([a-z-]+)", run)) <= targets
            for file in re.findall(r"(?:^|\s)(\.ci/\S+|conf/\S+|CHANGELOG\.md|fedproxy/\S+)", run):
                assert (ROOT / file).exists(), file


def test_tests_run_on_every_version_of_python_that_is_supported() -> None:
    (job,) = _read(FORGE / "workflows" / "tests.yml")["jobs"].values()
    supported = re.findall(r'Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert job["strategy"]["matrix"]["python"] == supported
    assert job["steps"][-1]["run"] == ".ci/run"


def test_links_of_forms_lead_somewhere() -> None:
    for path in FORMS:
        for link in re.findall(r"\]\(\.\./blob/HEAD/([^)#]+)\)", path.read_text()):
            assert (ROOT / link).is_file()
