"""The tutorial's commands do what it says: they run as it has them, with its config, on other ports."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from contextlib import suppress
from pathlib import Path

from tests.rig.command import fedproxy
from tests.rig.programs import free_port

#: Leaves a launch once it is ready, instead of at a time.
STREAM = """\
stream() {
    coproc curl --no-buffer "$@"
    grep --max-count=1 '"ready"' <&"${COPROC[0]}"
    kill "$COPROC_PID"
}
"""
TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()


async def test_tutorial_can_be_followed(tmp_path: Path) -> None:
    steps = TUTORIAL.partition("\n## Write a config\n")[2].partition("\n## With real members\n")[0]
    config, *_ = re.findall(r"^```yaml\n(.*?)^```$", steps, re.DOTALL | re.MULTILINE)
    script = "".join(re.findall(r"^```sh\n(.*?)^```$", steps, re.DOTALL | re.MULTILINE))
    async with fedproxy("demo", "--port", 0) as demo:
        await demo.line("Ctrl-C stops everything.")
        for name in ("oxford", "leuven", "bergen"):
            (url,) = re.findall(rf"^  toy-{name} +(http://\S+)/$", demo.output, re.MULTILINE)
            config = re.sub(rf"(  {name}:\n    url: )\S+", rf"\g<1>{url}", config)
        (breaker,) = re.findall(r"^  to break them +(http://\S+)/$", demo.output, re.MULTILINE)
        visitors, operators = free_port(), free_port()
        config = config.replace("admin:\n", f"workers: 1\nadmin:\n  address: 127.0.0.1:{operators}\n")
        (tmp_path / "edge.yaml").write_text(f"listen:\n  - address: 127.0.0.1:{visitors}\n{config}")
        script = script.replace(". .venv/bin/activate\n", "").replace(
            "mkdir my-federation\ncd my-federation\n", ""
        )
        script = script.replace("http://127.0.0.1:43169", breaker).replace("curl --no-buffer", "stream")
        script = script.replace(":8080", f":{visitors}").replace(":8081", f":{operators}")
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-eu",
            "-c",
            STREAM + script,
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "FEDPROXY_ADMIN": f"http://127.0.0.1:{operators}",
            },
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(90):
                said, _ = await process.communicate()
        finally:
            # The edge too, if the script did not come to its end.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        output = said.decode()
        assert process.returncode == 0, output
        for part in (
            "edge.yaml: valid, 3 members",
            '"available": ["oxford", "leuven", "bergen"]',
            '"phase": "ready"',
            "member:  oxford, by the key",
            "leuven: drain\n",
            "draining",
            "leuven: ready\n",
            "ejected",
            "breaker.open oxford was ejected: its breaker opened",
            "fedproxy_requests_total",
            '"termination":"--"',
        ):
            assert part in output, (part, output)
        assert output.count("\n200\n200\n200\n200\n200\n200\n200\n200\n") == 1, output
        named = {name.lower() for name in re.findall(r"(?i)^x-toy-member: (\S+)", output, re.MULTILINE)}
        assert len(named) == 1, output
        assert re.search(r"^bergen +available +healthy +closed +3 ", output, re.MULTILINE), output
        demo.signal(signal.SIGINT)
        assert await demo.ended() == 0
