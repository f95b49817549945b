"""The profile of a run: the table, the file, and the advice."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.helpers.tiny import build_tiny_model
from vtrain.runs.plan import FitPlan
from vtrain.runs.profile import SECTIONS, Profile, advise, build_profile


def plan(*, device: str = "cpu", freeze: str = "none", batch_size: int = 32) -> FitPlan:
    """As much of a plan as advice needs."""
    config = SimpleNamespace(freeze=freeze, train=SimpleNamespace(cache="auto"))
    preprocessing = build_tiny_model(("ant", "bee")).preprocessing
    parts: Any = SimpleNamespace(
        config=config,
        workers=2,
        preprocessing=preprocessing,
        device=torch.device(device),
        batch_size=batch_size,
    )
    return cast(FitPlan, parts)


def test_rest_of_the_time_is_other() -> None:
    profile = build_profile({"saving": 1.0, "forward": 2.0}, 10.0)
    assert list(profile.seconds.items()) == [("forward", 2.0), ("saving", 1.0), ("other", 7.0)]
    assert profile.share("forward", "saving") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ("wait for data", "data.workers"),
        ("forward", "model.backbone"),
        ("validation", "fewer validation images"),
        ("saving", "faster disk"),
        ("features", "computed once"),
    ],
)
def test_advice_is_about_what_took_the_time(section: str, word: str) -> None:
    (line,) = advise(Profile({section: 9.0, "other": 1.0}, 10.0), plan())
    assert word in line


def test_nothing_stands_out_and_nothing_is_advised() -> None:
    even = dict.fromkeys(SECTIONS, 1.0)
    assert advise(Profile(even, 9.0), plan()) == []


def test_advice_for_a_gpu_names_compile_and_the_batch() -> None:
    (line,) = advise(Profile({"forward": 1.0}, 1.0), plan(device="cuda", batch_size=16))
    assert "train.compile" in line
    assert "data.batch_size" in line
