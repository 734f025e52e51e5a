"""What a process imports when it starts, which is most of the time until it serves or answers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def _imported(statement: str) -> set[str]:
    """The names of all modules that a new interpreter has after `statement`."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "unneeded"),
    [
        (
            "import fedproxy.cli",
            {"aiohttp", "jinja2", "pydantic", "yaml", "prometheus_client", "importlib.metadata"},
        ),
        # The config comes pickled, so the models are imported too.
        (
            "import fedproxy.serve.worker, fedproxy.config.model",
            {"click", "rich", "yaml", "prometheus_client", "cryptography", "importlib.metadata"}
            | {"fedproxy.config.check", "fedproxy.config.load", "fedproxy.control.prober"},
        ),
    ],
    ids=["a command", "a worker"],
)
def test_start_imports_nothing_that_is_not_needed_by_all(statement: str, unneeded: set[str]) -> None:
    assert _imported(statement) & unneeded == set()


def test_config_that_comes_pickled_is_used_without_building_what_validates_one() -> None:
    statement = (
        "import pickle, sys\n"
        "from fedproxy.serve.assemble import assemble, options_of\n"
        "from fedproxy.proxy.edge import Edge\n"
        "config = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "assemble(Edge(local=lambda *_: None), config)\n"
        "options_of(config.listen[0])\n"
        "assert not type(config).__pydantic_complete__"
    )
    made = (
        "import pickle\nfrom fedproxy.config.load import parse\n"
        "print(pickle.dumps(parse('members: {gesis: {url: http://gesis.test}}', {})).hex())"
    )
    pickled = subprocess.run([sys.executable, "-c", made], capture_output=True, text=True, check=True)
    subprocess.run([sys.executable, "-c", statement, pickled.stdout.strip()], check=True)


def test_garbage_is_collected_again_once_a_process_has_started() -> None:
    statement = (
        "import gc\nfrom fedproxy.serve.worker import freeze\ngc.disable()\nfreeze()\nassert gc.isenabled()"
    )
    subprocess.run([sys.executable, "-c", statement], check=True)
