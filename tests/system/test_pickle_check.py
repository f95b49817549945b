"""Pickles are judged by what they would build."""

import io
import random
from collections import OrderedDict
from typing import Any

import pytest
import torch

from tests.faults.pickles import call, number, saved, table, text, whole
from vtrain.system import pickle_check
from vtrain.system.pickle_check import PickleRefusedError, PythonObjectError, check_pickle
from vtrain.system.torch_files import load_torch


def check(content: bytes) -> None:
    check_pickle(io.BytesIO(content))


@pytest.mark.parametrize(
    "value",
    [
        {"a": torch.ones(3), "b": torch.nn.Parameter(torch.ones(2, 2))},
        torch.nn.Linear(2, 2).state_dict(),
        OrderedDict(a=[1, 2.5, None, True, "text", b"bytes", 1 << 90, 1 + 2j]),
        {"sets": {1, 2}, "tuples": {(1, (2, 3)): ((),)}, "size": torch.Size([1, 2])},
        {"types": [torch.float32, torch.bfloat16], "place": torch.device("cpu")},
        {"half": torch.ones(2).half(), "numbers": torch.arange(3), "truths": torch.ones(1).bool()},
        {"random": random.Random(0).getstate(), "torch": torch.Generator().get_state()},
        {"again": [row := {"epoch": 1, "pair": (1, 2)}, row, row]},
    ],
    ids=lambda value: next(iter(value)),
)
def test_weights_and_plain_data_are_taken(tmp_path: Any, value: Any) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(saved(value))
    assert repr(load_torch(path)) == repr(value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"}" + b")" + b"\x85" * 65 + b"Ns", "nested more than 64 levels"),
        (b"}" + b")q\0" + b"h\0h\0\x86q\0" * 40 + b"Ns", "repeats tuples"),
        (call("_codecs encode", text("a"), text("idna")), "encodes text as 'idna'"),
        (b"\x95" + bytes(8) + b"N", "has the operation FRAME"),
    ],
)
def test_what_would_hang_or_crash_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(PickleRefusedError, match=reason):
        check(whole(value))


@pytest.mark.parametrize(
    "name",
    ["os system", "builtins eval", "builtins bytearray", "torch save", "torch float.__class__",
     "torch._utils os.system", "collections Counter", "torch.nn.modules.linear Linear"],
)  # fmt: skip
def test_other_objects_are_named(name: str) -> None:
    with pytest.raises(PythonObjectError) as caught:
        check(whole(call(name, number(1))))
    assert str(caught.value) == name.replace(" ", ".").removeprefix("builtins.")


def test_operations_are_counted_by_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_check, "MAX_OPERATIONS", 10)
    content = whole(table(a=number(1), b=number(2), c=number(3), d=number(4)))
    with pytest.raises(PickleRefusedError, match="more than 10 operations"):
        check(content)
    check_pickle(io.BytesIO(content), tensors=1)
