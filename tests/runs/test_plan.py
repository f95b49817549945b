"""The plan of a run: phases, rates, augmentation and the model, before the first step."""

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.helpers.tiny import draw_labelled
from vtrain.errors import ConfigError, ExitCode, UsageError
from vtrain.models.freezing import FROZEN, ParamRule, Phase, StageSummary
from vtrain.runs.plan import FitPlan, build_plan
from vtrain.runs.plan_text import format_rates, show_plan, show_stages
from vtrain.runs.settings import load_settings
from vtrain.system.terminal import Console
from vtrain.training.learning_rates import build_schedule

CONFIG = """
model: {backbone: simple_cnn, weights: none, options: {width_mult: 0.25}}
freeze: none
data: {train: images/train, val: images/val, image_size: 32, batch_size: 4, workers: 0}
optim: {lr: 3e-3, backbone_lr: 1e-3}
train: {epochs: 6, device: cpu, precision: fp32}
"""
# A policy that freezes needs weights; a file of random ones will do.
PRETRAINED = "model.weights=weights.pth"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    draw_labelled(Path("images/train"), {"ant": 6, "bee": 7, "cow": 5})
    draw_labelled(Path("images/val"), {"ant": 1, "bee": 1, "cow": 1})
    Path("tiny.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


def plan(*overrides: str, planned_epochs: int | None = None) -> FitPlan:
    loaded = load_settings(Path("tiny.yaml"), overrides)
    return build_plan(loaded, Console(quiet=True), planned_epochs=planned_epochs)


def save_weights() -> dict[str, torch.Tensor]:
    """Weights of the backbone in `weights.pth`, as torchvision would name them."""
    state = {
        name.removeprefix("backbone."): 2 * tensor
        for name, tensor in plan().classifier.state_dict().items()
        if name.startswith("backbone.")
    }
    torch.save(state, "weights.pth")
    return state


def epochs_of(phases: Sequence[Phase]) -> list[tuple[str, int]]:
    return [(phase.name, phase.epochs) for phase in phases]


def test_plan_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    plan()
    assert sorted(folder.rglob("*")) == before


def test_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = plan().classifier.state_dict()
    torch.manual_seed(2)
    second = plan("data.batch_size=5", "train.epochs=7").classifier.state_dict()
    other = plan("seed=1").classifier.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.2.weight"], other["head.2.weight"])


def test_model_takes_the_classes_and_the_image_size() -> None:
    found = plan()
    assert found.classifier.num_classes == 3
    assert (found.preprocessing.crop, found.preprocessing.resize) == (32, 32)
    assert (found.device, found.precision, found.workers) == (torch.device("cpu"), "fp32", 0)
    assert not found.pretrained_input


def test_weights_are_loaded_below_the_head() -> None:
    state = save_weights()
    found = plan(PRETRAINED).classifier
    assert all(
        torch.equal(found.backbone.state_dict()[name], value) for name, value in state.items()
    )
    assert torch.equal(found.head.state_dict()["2.bias"], torch.zeros(3))


def test_groups_hold_all_parameters() -> None:
    found = plan()
    parameters = {name for name, _ in found.classifier.named_parameters()}
    held = [name for group in found.param_groups for name in group.names]
    assert set(held) == parameters
    assert len(held) == len(parameters)


# --- phases --------------------------------------------------------------------------------------


def test_more_epochs_extend_the_last_phase_alone() -> None:
    save_weights()
    overrides = [PRETRAINED, "freeze=lp-ft"]
    assert epochs_of(plan(*overrides).phases) == [("probe", 2), ("finetune", 4)]
    longer = plan(*overrides, "train.epochs=9", planned_epochs=6)
    assert epochs_of(longer.phases) == [("probe", 2), ("finetune", 7)]
    # A new run of nine epochs would be another one.
    assert epochs_of(plan(*overrides, "train.epochs=9").phases) == [("probe", 3), ("finetune", 6)]


def test_extended_gradual_run_thaws_when_it_would_have() -> None:
    save_weights()
    overrides = [PRETRAINED, "freeze=gradual"]
    first = plan(*overrides).phases
    longer = plan(*overrides, "train.epochs=20", planned_epochs=6).phases
    assert longer[:-1] == first[:-1]
    assert longer[-1].rules == first[-1].rules
    assert longer[-1].epochs == first[-1].epochs + 14
    assert [phase.restart_schedule for phase in longer] == [True, False, False, False, False]


def test_rates_of_all_phases_are_in_the_groups() -> None:
    save_weights()
    found = plan(PRETRAINED, "freeze=lp-ft", "optim.layer_decay=0.5")
    peaks = {group.stage: list(group.peak_lrs) for group in found.param_groups}
    assert peaks == {
        "stem": [0.0, pytest.approx(1e-3 / 8)],
        "block1": [0.0, pytest.approx(1e-3 / 4)],
        "block2": [0.0, pytest.approx(1e-3 / 2)],
        "block3": [0.0, pytest.approx(1e-3)],
        "head": [3e-3, pytest.approx(6e-4)],  # a fifth once it has been probed
    }


def test_schedule_of_an_extended_run_ends_with_it() -> None:
    found = plan("train.epochs=9", planned_epochs=6)
    schedule = build_schedule(found.config.optim, steps_per_epoch=5, epochs=found.phases[0].epochs)
    assert schedule.total_steps == 45
    assert schedule(44) < 0.01


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("head", ["none"]),
        ("lp-ft", ["none", "light"]),
        ("until:block1", ["light"]),
        ("until:block3", ["none"]),  # leaves the head alone
        ("gradual", ["none", "light", "light", "light", "light"]),
        ("[{pattern: 'head.*', lr_scale: 1.0}, {pattern: '*', lr_scale: null}]", ["none"]),
        ("[{pattern: '*.bias', lr_scale: 1.0}, {pattern: '*', lr_scale: null}]", ["light"]),
    ],
)
def test_auto_augments_as_soon_as_features_change(policy: str, expected: list[str]) -> None:
    save_weights()
    found = plan(PRETRAINED, f"freeze={policy}")
    assert [found.augment(phase) for phase in found.phases] == expected


def test_given_augmentation_is_taken_in_every_phase() -> None:
    save_weights()
    found = plan(PRETRAINED, "freeze=lp-ft", "data.augment=trivial")
    assert [found.augment(phase) for phase in found.phases] == ["trivial", "trivial"]


@pytest.mark.parametrize(("batch_norm", "expected"), [("train", True), ("frozen", False)])
def test_batch_norm_of_the_config_is_applied(batch_norm: str, expected: bool) -> None:
    found = plan(f"model.batch_norm={batch_norm}")
    found.apply_freeze(found.phases[0])
    found.classifier.train()
    modes = {m.training for m in found.classifier.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert modes == {expected}


# --- what cannot be planned ----------------------------------------------------------------------


def test_batch_larger_than_the_data_says_what_would_do() -> None:
    assert plan("data.batch_size=18").config.data.batch_size == 18
    with pytest.raises(ConfigError, match="19 is more than the 18 training images") as caught:
        plan("data.batch_size=19")
    assert caught.value.hint == "set data.batch_size=4 or less"
    assert caught.value.exit_code == ExitCode.USAGE


def test_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device mps was asked for"):
        plan("train.device=mps")


def test_pattern_without_a_match_fails_before_training() -> None:
    save_weights()
    with pytest.raises(ConfigError, match="blok1"):
        plan(PRETRAINED, "freeze=[{pattern: blok1, lr_scale: 1}, {pattern: '*', lr_scale: null}]")


# --- what is shown -------------------------------------------------------------------------------


def shown(found: FitPlan) -> str:
    stream = io.StringIO()
    show_plan(found, Console(stream=stream))
    return stream.getvalue()


def test_shown_plan_names_data_input_model_and_phases() -> None:
    draw_labelled(Path("images/test"), {"ant": 2})
    save_weights()
    found = plan(PRETRAINED, "freeze=lp-ft", "data.test=images/test")
    text = shown(found)
    assert "18 train, 3 val, 2 test images of 3 classes (5 to 7 per class)" in text
    assert "32x32 px" in text
    assert "augmentation light, none" in text
    assert "simple_cnn, weights weights.pth, on cpu, fp32" in text
    head = 3 * (found.classifier.feature_dim + 1)
    assert f"phase probe, 2 epochs: trains {head} of" in text
    assert "phase finetune, 4 epochs" in text


def test_many_phases_show_the_first_one_alone() -> None:
    save_weights()
    text = shown(plan(PRETRAINED, "freeze=gradual"))
    assert text.count("phase thaw-") == 1
    assert "phase thaw-0, 1 epoch" in text


def test_frozen_stages_are_shown_as_frozen() -> None:
    stream = io.StringIO()
    rows = [
        StageSummary("stem", 1000, 0, None, "frozen"),
        StageSummary("head", 30, 30, (1e-3, 2e-3), "-"),
    ]
    phase = Phase("probe", 2, (ParamRule("head", 1.0), FROZEN))
    show_stages(phase, rows, Console(stream=stream))
    text = stream.getvalue()
    assert "trains 30 of 1.03k parameters" in text
    stem, head = (line.split() for line in text.splitlines()[-2:])
    assert stem == ["stem", "1k", "frozen", "-", "frozen"]
    assert head == ["head", "30", "30", "1.00e-03", "to", "2.00e-03", "-"]


@pytest.mark.parametrize(
    ("rates", "expected"),
    [(None, "-"), ((1e-3, 1e-3), "1.00e-03"), ((1e-5, 1e-3), "1.00e-05 to 1.00e-03")],
)
def test_format_rates(rates: tuple[float, float] | None, expected: str) -> None:
    assert format_rates(rates) == expected
