"""What holds for every test: uvloop, and no test is skipped in CI."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Generator

import pytest
import uvloop
from hypothesis import settings

# No test asserts a time, and an example that comes at a bad moment may take long.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# A job in the background of a script has it ignored, and so would have the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: These take longest. They often wait for processes, so other tests fill the gaps, and nothing long is last.
LONGEST = ("tests/test_benchmarks.py", "tests/demo/", "tests/real/", "tests/serve/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the tests that take longest, and says which are not looked at for coverage.

    What random examples or other people's programs reach today they may not reach tomorrow, so no line may
    count as covered because of them; and tracing makes them take up to three times as long.
    """
    items.sort(key=lambda item: [not item.nodeid.startswith(each) for each in LONGEST])
    for item in items:
        is_random = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if is_random or item.nodeid.startswith("tests/real/"):
            item.add_marker("no_cover")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The edge runs on uvloop, and so do its tests."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything that a test needs is there, so a skipped test is one that nobody would miss."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
    return report
