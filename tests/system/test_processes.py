"""The processes of a job, alone and as two real processes that meet over gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.tiny import CPU
from vtrain.errors import DataError, ExitCode, UsageError
from vtrain.system.processes import PeerFailedError, Processes, read_processes

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


# --- what torchrun says


def test_place_in_the_job_is_read_from_torchruns_variables() -> None:
    processes = read_processes(TORCHRUN)
    assert processes == Processes(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert not processes.is_main
    assert read_processes(TORCHRUN | {"RANK": "0"}).is_main


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": ""}, TORCHRUN | {"WORLD_SIZE": "1"}])
def test_one_process_is_alone(variables: dict[str, str]) -> None:
    assert read_processes(variables) == Processes()
    assert Processes().is_main


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_missing_variables_are_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not set") as caught:
        read_processes({key: value for key, value in TORCHRUN.items() if key != name})
    assert "torchrun" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "8"}, "RANK is 8, expected 0 to 7"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is '1.5'"),
    ],
)
def test_values_that_make_no_sense_are_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_processes(TORCHRUN | changed)


def test_each_process_takes_the_device_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = read_processes(TORCHRUN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert processes.choose_device("auto") == processes.choose_device("cuda") == "cuda:1"
    assert processes.choose_device("cpu") == "cpu"
    assert Processes().choose_device("auto") == "auto"
    assert Processes().choose_device("cuda:2") == "cuda:2"
    with pytest.raises(UsageError, match="cuda:1 was asked for by 4 processes"):
        processes.choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="4 processes were started on a machine with 2 GPUs"):
        processes.choose_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert processes.choose_device("auto") == "cpu"


# --- alone


def test_alone_nothing_is_started_and_everything_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a group of processes was started")

    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    monkeypatch.setattr("torch.distributed.all_reduce", refuse)
    processes = Processes()
    values = torch.tensor([1.0, 2.0])
    with processes.joined(CPU), processes.together(main_first=True):
        processes.barrier()
        processes.sum(values)
        processes.start_sum(values)()
        assert processes.gather("x") == ["x"]
        assert processes.broadcast("x") == "x"
    assert values.tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match="bad"), processes.together():
        raise DataError("bad")


def test_error_of_another_keeps_its_exit_code() -> None:
    error = PeerFailedError(3, "no space", "free some", int(ExitCode.RESOURCE))
    assert (error.exit_code, error.hint) == (ExitCode.RESOURCE, "free some")
    assert error.message == "process 3 failed: no space"


# --- two processes

SCRIPT = """
import json, os, sys, time
from datetime import timedelta
import torch
from vtrain.system.processes import read_processes
from vtrain.errors import DataError, VtrainError

processes, cpu, seen = read_processes(), torch.device("cpu"), {}
ports = json.loads(os.environ["PORTS"])

def attempt(name, action):
    try:
        action()
    except VtrainError as error:
        seen[name] = [type(error).__name__, error.message, error.hint, int(error.exit_code)]

def fail(main_first):
    with processes.together(main_first=main_first):
        if processes.rank == 1:
            raise DataError("bad", "mend it")

def come_late():
    os.environ["MASTER_PORT"] = ports[1]
    with processes.joined(cpu, timeout=timedelta(seconds=1)):
        if processes.rank == 1:
            time.sleep(2)

def die():
    os.environ["MASTER_PORT"] = ports[2]
    with processes.joined(cpu):
        if processes.rank == 1:
            os._exit(9)

order = []
with processes.joined(cpu):
    floats, whole = torch.tensor([processes.rank + 1.0]), torch.tensor([2**60 + processes.rank])
    later = torch.tensor([processes.rank])
    finish = processes.start_sum(later)
    processes.sum(floats, whole)
    finish()
    seen["sums"] = [floats.item(), whole.item(), later.item()]
    seen["gathered"] = processes.gather({"rank": processes.rank, "name": "x"})
    seen["broadcast"] = processes.broadcast(f"from {processes.rank}")
    attempt("together", lambda: fail(False))
    attempt("main first", lambda: fail(True))
    with processes.together(main_first=True):
        begun = time.time()
        time.sleep(0.05)
        ended = time.time()
    spans = processes.gather([begun, ended])
    seen["in turn"] = spans[0][1] <= spans[1][0]
attempt("late", come_late)
if processes.rank == 1:
    print(json.dumps(seen), flush=True)
begun = time.time()
attempt("dead", die)
seen["waited"] = time.time() - begun
print(json.dumps(seen))
"""


def find_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_two_processes(tmp_path: Path) -> None:
    ports = find_ports(3)
    processes = [start_rank(rank, ports) for rank in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 9], results
    assert results[0][1] == ""  # no warnings
    seen: list[dict[str, Any]] = [json.loads(out) for out, _ in results]
    for each in seen:
        assert each["sums"] == [3.0, 2**61 + 1, 1]
        assert each["gathered"] == [{"rank": 0, "name": "x"}, {"rank": 1, "name": "x"}]
        assert each["broadcast"] == "from 0"
        assert each["in turn"]
    for step in ("together", "main first"):
        assert seen[1][step] == ["DataError", "bad", "mend it", 3]
        assert seen[0][step] == ["PeerFailedError", "process 1 failed: bad", "mend it", 3]
    kind, message, hint, code = seen[0]["late"]
    assert (kind, code) == ("ResourceError", 5)
    assert message.startswith("process 0 of 2 cannot go on: another did not answer in time (")
    kind, message, hint, code = seen[0]["dead"]
    assert (kind, code) == ("ResourceError", 5)
    assert message.startswith("process 0 of 2 cannot go on: another ended (")
    assert "ended first" in hint
    assert "/" not in message.partition("(")[2].partition("[")[0]  # not gloo's source file
    assert seen[0]["waited"] < 60


def start_rank(rank: int, ports: list[str]) -> subprocess.Popen[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": ports[0],
        "PORTS": json.dumps(ports),
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
