"""What README.md tells a newcomer to type, typed."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks_of_the_agent() -> tuple[str, str, list[str]]:
    """Return the agent, its configuration, and what is typed, as the section "An agent" has them."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## An agent")[2].partition("\n## ")[0]
    blocks = [(match["language"], match["text"]) for match in _BLOCK.finditer(section)]
    ((_, agent),) = [block for block in blocks if block[0] == "python"]
    ((_, toml),) = [block for block in blocks if block[0] == "toml"]
    return agent, toml, [text for language, text in blocks if language == "bash"]


def test_the_agent_of_the_readme_answers_what_is_asked(tmp_path: Path, free_port: int) -> None:
    """Whoever makes the two files and types the three commands sees the answer, and Ctrl-C ends the agent with 0."""
    agent, toml, (make, start, ask) = _blocks_of_the_agent()
    (tmp_path / "librarian.py").write_text(agent)
    (tmp_path / "poolwire.toml").write_text(toml.replace("5555", str(free_port)))
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}

    def typed(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    typed(make)
    with subprocess.Popen(
        shlex.split(start), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            assert "librarian is ready" in process.stderr.readline()
            answer = typed(ask.replace("5555", str(free_port)))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert answer == 'b\'{"titles":["Solaris"]}\'\n'
    assert process.returncode == 0, errors
