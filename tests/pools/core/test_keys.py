"""Configurations as keys, also in a process that did not make them."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from app.pools.sql_pool import get_postgresql_config
from app.pools.zmq_pool import SocketConfig, SocketType

CONFIGS = {
    "get_postgresql_config('db', 5432, 'app', 'ada', 'secret')": get_postgresql_config(
        "db", 5432, "app", "ada", "secret"
    ),
    "SocketConfig(SocketType.SUB, 'inproc://news', options={'RCVHWM': 3}, topics=['a'])": SocketConfig(
        SocketType.SUB, "inproc://news", options={"RCVHWM": 3}, topics=["a"]
    ),
}


@pytest.mark.parametrize("made", CONFIGS)
def test_a_pickled_config_is_the_same_key_in_another_process(made: str) -> None:
    """What another process unpickles is equal to what it makes itself, and hashes alike."""
    code = (
        "import pickle, sys; from app.pools.sql_pool import get_postgresql_config; "
        "from app.pools.zmq_pool import SocketConfig, SocketType; "
        f"print({{pickle.load(sys.stdin.buffer)}} == {{{made}}})"
    )
    # Not this process's seed, whatever that is: with the same one, a pickled hash would be right.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(CONFIGS[made]),
        env=environment,
        capture_output=True,
        check=True,
    )

    assert answer.stdout.strip() == b"True"
