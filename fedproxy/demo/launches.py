"""The events of a launch, as a BinderHub sends them. Pure: no clock, no network."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fedproxy.demo.pages import PROVIDERS

Event = dict[str, Any]

_LARGEST_EVENT = 22_581


class ToyOutcome(enum.Enum):
    """How a launch goes."""

    BUILT = "built"
    """The image is built first, then launched."""
    CACHED = "cached"
    """The image exists, and is only launched."""
    FULL = "full"
    """The image must be built and the member has no room: the first event says so."""
    CACHED_FULL = "cached-full"
    """The image exists and the member has no room: the event after `built` says so."""
    NO_PROVIDER = "no-provider"
    NO_REF = "no-ref"
    BANNED = "banned"


@dataclass(frozen=True)
class Step:
    """One event of a stream, `after` seconds since the one before (at a pace of 1)."""

    after: float
    event: Event


@dataclass(frozen=True)
class ToyLaunch:
    """One requested launch. `provider` and `spec` are raw, as in the target; `url` is the session's."""

    provider: str
    spec: str
    member_url: str
    url: str
    token: str

    @property
    def image(self) -> str:
        """The name of the image; the same for the same repository and ref on every member."""
        digest = hashlib.sha256(f"{self.provider}/{self.spec}".encode()).hexdigest()
        return f"registry.example.org/toy/r2d-{digest[:12]}:{digest[12:52]}"

    @property
    def repo_url(self) -> str:
        """Where the repository would be."""
        return f"https://{self.provider}.example.org/{self.spec.rpartition('/')[0] or self.spec}"


def outcome(launch: ToyLaunch, *, cached: bool, full: bool) -> ToyOutcome:
    """How a launch goes; `missing` and `banned` in the spec make it fail on every member."""
    if launch.provider not in PROVIDERS:
        return ToyOutcome.NO_PROVIDER
    if "banned" in launch.spec:
        return ToyOutcome.BANNED
    if "missing" in launch.spec:
        return ToyOutcome.NO_REF
    if full:
        return ToyOutcome.CACHED_FULL if cached else ToyOutcome.FULL
    return ToyOutcome.CACHED if cached else ToyOutcome.BUILT


def steps(launch: ToyLaunch, how: ToyOutcome) -> Iterator[Step]:
    """Every event of the stream in order; the last one is `ready` or `failed`."""
    match how:
        case ToyOutcome.NO_PROVIDER:
            yield _failed(f"No provider found for prefix {launch.provider}\n", 404)
        case ToyOutcome.NO_REF:
            yield _failed(
                f"Could not resolve ref for {launch.provider}:{launch.spec}. Double check your URL.\n", 404
            )
        case ToyOutcome.BANNED:
            yield _failed(
                f"Sorry, {launch.provider}:{launch.spec} is not allowed to launch. Please ask.\n", 403
            )
        case ToyOutcome.FULL:
            yield _no_room()
        case ToyOutcome.CACHED_FULL:
            yield _built(launch, "Found built image, launching...\n")
            yield _no_room()
        case ToyOutcome.CACHED:
            yield _built(launch, "Found built image, launching...\n")
            yield from _launching(launch)
        case ToyOutcome.BUILT:
            yield from _building(launch)
            yield _built(launch, "Built image, launching...\n")
            yield from _launching(launch)


def _say(after: float, phase: str, message: str, **more: Any) -> Step:
    return Step(after, {"phase": phase, "message": message, **more})


def _failed(message: str, status: int) -> Step:
    return _say(0.2, "failed", message, status_code=status)


def _no_room() -> Step:
    # BinderHub gives no status code with this one.
    return _say(0.2, "failed", "Too many users on this BinderHub! Try again soon.\n")


def _built(launch: ToyLaunch, message: str) -> Step:
    return _say(0.3, "built", message, imageName=launch.image)


def _launching(launch: ToyLaunch) -> Iterator[Step]:
    yield _say(0.1, "launching", "Launching server...\n")
    for message in (
        "Server requested",
        "Spawning server...",
        "Successfully assigned the pod to a node",
        "Pulling image",
        "Successfully pulled image",
        "Created container notebook",
        "Started container notebook",
    ):
        yield Step(0.2, {"phase": "launching", "message": f"{message}\n"})
    persistent = f"v2/{launch.provider}/{launch.spec}"
    yield _say(
        0.3,
        "ready",
        f"server running at {launch.url}\n",
        url=launch.url,
        token=launch.token,
        image=launch.image,
        repo_url=launch.repo_url,
        binder_ref_url=f"{launch.repo_url}/tree/HEAD",
        binder_launch_host=f"{launch.member_url}/",
        binder_request=persistent,
        binder_persistent_request=persistent,
    )


def _building(launch: ToyLaunch) -> Iterator[Step]:
    yield _say(0.5, "waiting", "Waiting for build to start...\n")
    yield _say(1.0, "fetching", "Picked Git content provider.\n")
    yield _say(0.1, "fetching", f"Cloning into '/tmp/repo2docker/{launch.image[-8:]}'...\n")
    yield _say(0.4, "fetching", f"HEAD is now at {launch.image[-7:]} Say what the notebook shows\n")
    yield _say(0.1, "building", "Using PythonBuildPack builder\n")
    # Some events of a real build have no phase.
    yield Step(0.1, {"message": "Building conda environment for python=3.11\n"})
    for number in range(1, 51):
        yield _say(
            0.06, "building", f"Step {number}/50 : RUN ./toy-{number:02}.sh --quiet --prefix /srv/conda\n"
        )
        digest = hashlib.sha256(f"{launch.image}{number}".encode()).hexdigest()
        yield _say(
            0.02, "building", f" ---> Running in {digest[:12]}\nRemoving intermediate container {digest}\n"
        )
    packages = " ".join(f"toy-package-{number}-1.0.{number}" for number in range(1000))
    yield _say(0.1, "building", f"Successfully installed {packages}"[: _LARGEST_EVENT - 60] + "\n")
    yield _say(0.3, "pushing", "Pushing image\n")
    for percent in range(0, 101, 10):
        yield Step(
            0.1,
            {
                "phase": "pushing",
                "message": f"Pushing image {percent} %\n",
                "progress": {"layer": {"current": percent, "total": 100}},
            },
        )
