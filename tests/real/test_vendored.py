"""Files of others that are served as they are: nobody has edited them, and nobody is to."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import pytest

PACKAGE = Path(sys.prefix) / "node" / "node_modules" / "uplot"


@pytest.mark.skipif(not PACKAGE.is_dir(), reason="uplot is not installed: make needs npm")
@pytest.mark.parametrize("name", ["dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE"])
def test_vendored_file_is_the_package_s(name: str) -> None:
    vendored = files("fedproxy.web").joinpath("static", "vendor", Path(name).name)
    assert vendored.read_bytes() == (PACKAGE / name).read_bytes()
