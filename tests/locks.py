"""What builds the image, as pyproject.toml names it: printed for `make lock`."""

from __future__ import annotations

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())


def builders() -> list[str]:
    """The requirements of the backend, of its hook that compiles, and of the bill of materials."""
    hook = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["mypyc"]
    bill = [each for each in PROJECT["project"]["optional-dependencies"]["test"] if "cyclonedx" in each]
    return [*PROJECT["build-system"]["requires"], *hook["dependencies"], *bill]


if __name__ == "__main__":
    print("\n".join(builders()))
