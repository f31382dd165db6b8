"""Starting processes: what they find in their environment, and whose exit code counts."""

import json
import os
import subprocess
import sys
import time

import pytest

from rlhf.launch import processes

PROGRAM = """
import json, os, sys, time
role = sys.argv[1:]
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
with open(f"seen_{os.environ['RANK']}.json", "w") as file:
    json.dump({name: os.environ.get(name) for name in names}, file)
plan = role[int(os.environ["RANK"])]
time.sleep(float(plan.partition(",")[2] or 0))
sys.exit(int(plan.partition(",")[0]))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A program that is found as `rlhf`: process i exits with the code (after the seconds) of argument i."""
    (tmp_path / "rlhf").mkdir()
    (tmp_path / "rlhf" / "__init__.py").touch()
    (tmp_path / "rlhf" / "__main__.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def seen(folder, number):
    return json.loads((folder / f"seen_{number}.json").read_text())


def test_every_process_knows_its_place(program, monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: 7)
    assert processes.launch(["0", "0", "0"], 3) == 0
    environments = [seen(program, number) for number in range(3)]
    assert [e["RANK"] for e in environments] == [e["LOCAL_RANK"] for e in environments] == ["0", "1", "2"]
    assert {e["WORLD_SIZE"] for e in environments} == {e["LOCAL_WORLD_SIZE"] for e in environments} == {"3"}
    assert {e["MASTER_ADDR"] for e in environments} == {"127.0.0.1"}
    assert len({e["MASTER_PORT"] for e in environments}) == 1
    assert {e["OMP_NUM_THREADS"] for e in environments} == {"2"}  # 7 cores for 3 processes


def test_more_processes_than_cores_get_one_thread_each(program, monkeypatch):
    monkeypatch.setattr(processes, "_cores", lambda: 1)
    processes.launch(["0", "0"], 2)
    assert seen(program, 0)["OMP_NUM_THREADS"] == "1"


def test_a_number_of_threads_that_the_user_set_stays(program, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    processes.launch(["0"], 1)
    assert seen(program, 0)["OMP_NUM_THREADS"] == "5"


def test_the_exit_code_is_that_of_the_process_that_failed_first(program, monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 5.0)
    assert processes.launch(["0", "2"], 2) == 2
    assert processes.launch(["1,1", "2"], 2) == 2


def test_the_others_are_ended_when_one_has_failed(program, monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.3)
    started = time.monotonic()
    assert processes.launch(["2", "0,60"], 2) == 2
    assert time.monotonic() - started < 30


def test_a_process_that_is_killed_counts_as_shells_count_it(program):
    (program / "rlhf" / "__main__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert processes.launch([], 1) == 128 + 9


def test_ranks_come_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (processes.rank(), processes.world_size()) == (3, 4)


def test_alone_nothing_is_waited_for():
    processes.join()
    processes.barrier()
    assert processes.gather(["a", "b"]) == ["a", "b"]
    assert processes.from_first_process(lambda: "plan") == "plan"


MEETING = """
import os
from pathlib import Path
from rlhf.errors import ConfigError
from rlhf.launch.processes import from_first_process, rank

def make():
    Path(f"made_by_{rank()}").touch()
    return {"plan": [1, 2]}

def fail():
    raise ConfigError(f"found by {rank()}")

try:
    print(from_first_process(make)["plan"], from_first_process(lambda: None))
    from_first_process(fail)
except ConfigError as error:
    print(error)
"""


def test_what_the_first_process_makes_or_finds_wrong_all_get(tmp_path):
    shared = {**os.environ, "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "", **processes.rendezvous()}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING],
            env={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert outputs == ["[1, 2] None\nfound by 0\n"] * 2
    assert sorted(path.name for path in tmp_path.glob("made_by_*")) == ["made_by_0"]
