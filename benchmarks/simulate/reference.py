"""`docs/simulation.md`, from the models and the measures: `python -m benchmarks.simulate.reference`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

from pydantic import BaseModel

from benchmarks.simulate import recorded
from benchmarks.simulate.measures import MEASURES, Fate
from benchmarks.simulate.policies import WITHOUT, Oracle, offered
from benchmarks.simulate.scenario import DEFAULT, SHIPPED, Scenario, Spread
from fedproxy.config.reference import default_text, section_of, type_text
from fedproxy.config.units import format_duration

_SHIPPED = (DEFAULT, "replicated.yaml", "one-sick.yaml", "flash-crowd.yaml")

_INTRODUCTION = """\
# Simulation

Which member a launch should go to cannot be tried out on visitors. The simulator sends the same visitors to
the same federation once for each policy, and compares what they got:

```sh
python -m benchmarks.simulate                                     # federation.yaml, all policies
python -m benchmarks.simulate one-sick.yaml --seed 2 --launches 100000
python -m benchmarks.simulate --policy expected-wait random --json results.json
python -m benchmarks.simulate mine.yaml --record launches.jsonl   # recorded launches
```

The decisions are the edge's own: the code of `fedproxy/decide` takes time and chance as arguments, and gets
both from the simulator. There is no clock and no network, so the same scenario, seed and number of launches
give the same result on any machine. Ctrl-C shows the results so far (exit status 130, `"partial": true` in
the JSON). A scenario with faults is refused with all of them, each with its place (exit status 2).

A million launches take about half a minute of processor time for each policy, and a minute and a half with
`expected-wait`; 53 s of it with the hot path compiled (`make compiled`, then
`PYTHONPATH=.compiled:. python -P -m benchmarks.simulate`).

A scenario is a YAML file. The shipped ones are in `benchmarks/` and are found by their names:

| scenario | command | what |
| --- | --- | --- |
"""

_WORLD = """\
## The world

**Visitors** come by chance, at the rate of the hour and the day. One makes a few launches, most of the same
repository, and has a pod after each for as long as the session lasts. Most browsers keep the edge's cookie,
which names the member of the visitor's launch before; embeds have no cookie, and bots launch once. In a flash
crowd many people launch one repository at once. With what luck somebody launches is drawn with the visitor: a
launch that is slow with one policy is slow with each.

**Repositories** are unequally popular (Zipf). New ones come, and a commit makes a new image. A repository
always takes as long to build, and some cannot be built.

**Members** have slots for pods, some of which their own communities may use. A launch needs its image. If the
registry does not have it, it is built, when one of the build slots is free; launches of the same image wait
for the same build. Then a pod starts on a node that has the image, or else on the fullest node that has room,
which fetches the image first. Nodes and registries forget what was not launched for the longest time. Images
are separate, or come to the other members' registries some time after the build.

**A launch that cannot be served** is told so by its member: it has no room, or fails before the visitor has
seen an event. Then the edge asks the next member, up to `edge.attempts`. After that, when it is being built
or its pod starts, it does not move: it may still fail, find no room after the build, or be lost in a crash.

**Edges** know what their launches told them, what their breakers count, and what probes find: a crash after
`edge.fall` probes, and a member that says that it is full with the next one. Several edges know nothing of
each other's launches, unless they share a store (`edge.shared`).

Left out, to keep it small: requests that are no launches, visitors who leave before their pod is there, and
the network. Builds take no slots, and a pod that starts is not stopped by a crash of its BinderHub.
"""

_POLICIES = """\
## Policies

| policy | what |
| --- | --- |
"""

_MEANINGS = {
    "rendezvous": "by the hash of the repository and the weights",
    "rendezvous-bounded": "the same, with a bound on the load of a member (`edge.load_bound`): what "
    "`balancer: rendezvous` does",
    "expected-wait": "where the launch is expected to be ready first, by what launches before have told",
    "random": "by the weights",
    "least-requests": "the fewest launches under way, by weight",
}

_RESULTS = """\
## Measures

Only launches that are asked for after the warm-up count. In the JSON each policy also has `launches`, and
`ends`:
"""

_RECORDED = """\
## Recorded launches

`--record FILE` takes the launches from a file instead of `visitors`: one JSON object per line, in the order
of time.

"""


_SCENARIOS = """\
## Scenarios

Only `members` is required, and within a member only `slots`.

- A **duration** is a number of seconds or has a unit: `90s`, `15m`, `4h`, `1d`.
- A **spread** is how much a time varies, lognormally: half are shorter than its `median`, and 95 of 100 are
  shorter than its `p95`.
- A key without a value is ignored.
"""


def render() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION + "".join(_scenarios()) + "\n" + _WORLD]
    parts.append(_POLICIES + "".join(_policies()))
    parts.append(
        f"Each but the oracle is simulated a second time with `{WITHOUT}` at the end of its name: then a\n"
        "launch is sent to one member only.\n"
    )
    parts.append(_RESULTS)
    parts.append("| end | meaning |\n| --- | --- |\n" + "".join(_ends()))
    parts.append("| measure | definition |\n| --- | --- |\n" + "".join(_measures()))
    parts.append(
        "`builds_oracle` is `builds` of the policy `oracle` with the same visitors: nearly the\n"
        "fewest possible.\n"
    )
    parts.append(_SCENARIOS)
    parts.append(_table(Scenario, ""))
    for name, field in Scenario.model_fields.items():
        inner = section_of(field)
        if inner:
            model, infix = inner
            parts += [f"### {name}\n", f"{field.description}\n", _table(model, f"{name}{infix}.")]
    _, *text = inspect.getdoc(recorded).partition("\n")  # type: ignore[union-attr]
    parts.append(_RECORDED + _prose("".join(text)))
    return "\n".join(parts)


def _scenarios() -> Iterator[str]:
    for name in _SHIPPED:
        lines = (SHIPPED / name).read_text().splitlines()
        text = " ".join(line[2:] for line in lines if line.startswith("# ") and "`python" not in line)
        command = "python -m benchmarks.simulate" + ("" if name == DEFAULT else f" {name}")
        yield f"| `{name}` | `{command}` | {text} |\n"


def _policies() -> Iterator[str]:
    for name in offered():
        if name in _MEANINGS:
            yield f"| `{name}` | {_MEANINGS[name]} |\n"
    yield f"| `oracle` | {_one_line(inspect.getdoc(Oracle))} |\n"


def _ends() -> Iterator[str]:
    for name, meaning in re.findall(r"([A-Z]+): (.+?)(?= [A-Z]{4,}:|$)", _one_line(inspect.getdoc(Fate))):
        yield f"| `{name.lower()}` | {meaning} |\n"


def _measures() -> Iterator[str]:
    before = ""
    for name, measure in MEASURES.items():
        text = _one_line(inspect.getdoc(measure))
        yield f"| `{name}` | {text.replace('The same:', f'As `{before}`:')} |\n"
        before = name if not text.startswith("The same:") else before


def _one_line(text: str | None) -> str:
    return " ".join(
        (text or "").replace(" `able`: who could serve the last launch, a bit for each.", "").split()
    )


def _prose(text: str) -> str:
    """A docstring as Markdown: what is indented is code."""
    return re.sub(r"^    (.+)$", r"```json\n\1\n```", text.strip("\n"), flags=re.MULTILINE) + "\n"


def _table(model: type[BaseModel], prefix: str) -> str:
    return "| key | type | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(_rows(model, prefix))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = section_of(field)
        kind, default = type_text(field), default_text(field)
        value = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, Spread):
            median, p95 = format_duration(value.median), format_duration(value.p95)
            kind, default = "spread", f"`{{median: {median}, p95: {p95}}}`"
        elif isinstance(value, tuple) and value and len(set(value)) == 1:
            default = f"`{value[0]:g}` each"
        yield f"| `{prefix}{name}` | {kind} | {default} | {field.description} |\n"
        if inner and prefix and inner[0] is not Spread:
            yield from _rows(inner[0], f"{prefix}{name}{inner[1]}.")


if __name__ == "__main__":
    sys.stdout.write(render())
