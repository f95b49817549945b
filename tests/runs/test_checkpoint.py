"""Checkpoints, and every kind of text that `-m MODEL` takes."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tests.helpers.tiny import CPU, build_tiny_model
from tests.helpers.told import Told
from vtrain.config.keys import HeadConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.errors import ExitCode, ModelError, UsageError, VtrainError
from vtrain.models.backbones import eval_preprocessing
from vtrain.models.model_file import ModelFile, save_model
from vtrain.models.zoo import find_backbone
from vtrain.runs.checkpoint import CHECKPOINT_FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from vtrain.runs.model_argument import LoadedModel, load_model
from vtrain.system.tensor_files import save_tensors
from vtrain.system.torch_files import load_torch, save_torch
from vtrain.training.state import TrainState

SMALL = "shufflenet_v2_x0_5"  # 5 MB of random weights
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- checkpoints ---------------------------------------------------------------------------------


def build_checkpoint() -> Checkpoint:
    """What a run with AdamW, an average and a loss scale would save."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    group = {"params": list(model.parameters()), "stage": "head", "peak_lrs": [0.1, 0.2]}
    optimizer = torch.optim.AdamW([group])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    state = TrainState(epoch=2, batch=3, step=17, loss_sum=1 / 3, history=[{"epoch": 1, "x": 0.1}])
    return Checkpoint(
        model=model.state_dict(),
        ema={"weight": torch.tensor([-0.0, 1e-45])},
        optimizer=optimizer.state_dict(),
        scaler=scaler.state_dict(),
        state=state,
        planned_epochs=4,
        frozen={"backbone.stem.weight": "ab12"},
        config={"train.epochs": 4, "freeze": [{"pattern": "*", "lr_scale": None}]},
        data={"classes": "ant, bee"},
        machine={"device": "cpu", "precision": "fp32", "threads": 2},
    )


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other


def test_checkpoint_comes_back_exactly() -> None:
    before = build_checkpoint()
    save_checkpoint(Path("last.ckpt"), before)
    after = load_checkpoint(Path("last.ckpt"))
    for each in fields(Checkpoint):
        assert_same(getattr(before, each.name), getattr(after, each.name))
    assert after.state.best_loss == float("inf")
    assert torch.signbit((after.ema or {})["weight"][0])


def test_checkpoint_without_average() -> None:
    content = {each.name: getattr(build_checkpoint(), each.name) for each in fields(Checkpoint)}
    save_checkpoint(Path("last.ckpt"), Checkpoint(**{**content, "ema": None}))
    assert load_checkpoint(Path("last.ckpt")).ema is None


def change(**changes: Any) -> Path:
    """A checkpoint file, intact as a file, with other content; None leaves an entry out."""
    path = Path("last.ckpt")
    save_checkpoint(path, build_checkpoint())
    content = {**load_torch(path), **changes}
    save_torch(path, {key: value for key, value in content.items() if value is not None})
    return path


def test_checkpoint_from_the_future() -> None:
    path = change(format=CHECKPOINT_FORMAT + 1, more=1)
    with pytest.raises(
        ModelError, match=r"has checkpoint format 2, this vtrain reads up to 1"
    ) as e:
        load_checkpoint(path)
    assert e.value.hint == "update vtrain: pip install --upgrade vtrain"
    assert e.value.exit_code == ExitCode.MODEL


@pytest.mark.parametrize("value", [{"weight": 1}, [1, 2], 7, {"format": "1"}, {"format": None}])
def test_foreign_file_is_no_checkpoint(value: Any) -> None:
    save_torch(Path("last.ckpt"), value)
    with pytest.raises(ModelError, match="is not a vtrain checkpoint"):
        load_checkpoint(Path("last.ckpt"))


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": None}, {"state": None}, {"state": {"epoch": 1, "mood": "good"}}, {"state": 7},
     {"more": 1}],
)  # fmt: skip
def test_content_that_does_not_fit(changes: dict[str, Any]) -> None:
    path = change(**changes)
    with pytest.raises(ModelError, match="the checkpoint's content is damaged"):
        load_checkpoint(path)


def test_missing_checkpoint() -> None:
    with pytest.raises(ModelError, match=r"cannot read last\.ckpt"):
        load_checkpoint(Path("last.ckpt"))


# --- models --------------------------------------------------------------------------------------


def load(
    model: str | None, *, precision: str = "fp32", notes: list[str] | None = None
) -> LoadedModel:
    return load_model(model, device=CPU, precision=precision, reporter=Told(notes))


def save_run(
    name: str = "runs/a", *, finished: bool = True, seed: int = 0, config: Any = None
) -> LoadedModel:
    """A run folder with a tiny model; what is in it."""
    model = build_tiny_model(CLASSES, seed=seed)
    preprocessing = Preprocessing(40, 32)
    run_dir = Path(name)
    run_dir.mkdir(parents=True)
    description = ModelFile(
        backbone="simple_cnn",
        options={},
        pretrained_input=False,
        head=HeadConfig().model_dump(),
        classes=CLASSES,
        preprocessing=preprocessing,
        config=config or {},
        metrics={},
        versions={},
    )
    save_model(run_dir / "model.safetensors", model.classifier.state_dict(), description)
    if finished:
        (run_dir / "result.json").write_text(json.dumps({"planned_epochs": 1}))
    return LoadedModel(model.classifier, preprocessing, CLASSES, "")


def logits(model: nn.Module, size: int = 64) -> Tensor:
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model(images.contiguous(memory_format=torch.channels_last))
    return found


def assert_same_logits(loaded: LoadedModel, expected: nn.Module) -> None:
    """To the rounding that folded batch norms bring."""
    torch.testing.assert_close(logits(loaded.classifier), logits(expected), rtol=1e-4, atol=1e-4)


def save_torchvision(path: str, *, num_classes: int = 1000, name: str = SMALL) -> nn.Module:
    torch.manual_seed(5)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes).eval()
    torch.save(model.state_dict(), path)
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", ["runs/a", "runs/a/", "runs/a/model.safetensors"])
def test_run_folder_and_model_file(text: str) -> None:
    saved = save_run(finished=False)
    loaded = load(text)
    assert loaded.classes == CLASSES
    assert loaded.preprocessing == Preprocessing(40, 32)
    assert loaded.source == "runs/a/model.safetensors"
    assert not loaded.classifier.training
    assert_same_logits(loaded, saved.classifier)


def test_model_is_placed_channels_last() -> None:
    save_run()
    for text in ("runs/a", "simple_cnn:none"):
        convolutions = [m for m in load(text).classifier.modules() if isinstance(m, nn.Conv2d)]
        weights = [m.weight for m in convolutions if m.weight.shape[1] > 1]
        assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_without_a_name_the_newest_finished_run_is_taken_and_named() -> None:
    save_run("runs/old")
    newest = save_run("runs/new", seed=1)
    save_run("runs/unfinished", finished=False)
    os.utime("runs/old/result.json", (100, 100))
    notes: list[str] = []
    loaded = load(None, notes=notes)
    assert notes == ["model: runs/new/model.safetensors, fp32"]
    assert_same_logits(loaded, newest.classifier)


@pytest.mark.parametrize("text", ["runs/a", "simple_cnn:none"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_taken_and_said(text: str, precision: str) -> None:
    save_run()
    notes: list[str] = []
    loaded = load(text, precision=precision, notes=notes)
    assert loaded.precision == precision
    assert notes[-1] == f"model: {loaded.source}, {precision}"
    features = loaded.classifier.forward_features(torch.rand(1, 3, 64, 64))
    assert features.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"train": {"precision": "fp32"}}, "fp32"),
        ({"train": {"precision": "bf16"}}, "bf16"),
        ({"train": {"precision": "fp16"}}, "bf16"),  # not on a CPU
        ({"train": {"precision": "auto"}}, "bf16"),
        ({"train": {"precision": ["fp32"]}}, "bf16"),
        ({"train": "fp32"}, "bf16"),
        ({}, "bf16"),
    ],
)
def test_a_run_is_used_in_the_precision_it_asked_for(
    monkeypatch: pytest.MonkeyPatch, config: Any, expected: str
) -> None:
    monkeypatch.setattr("vtrain.models.precision.has_bf16_instructions", lambda _: True)
    save_run(config=config)
    assert load("runs/a", precision="auto").precision == expected
    assert load("runs/a", precision="fp32").precision == "fp32"
    assert load("runs/a", precision="bf16").precision == "bf16"


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_precision_is_checked_first(precision: str) -> None:
    with pytest.raises(UsageError, match=precision):
        load("nothing", precision=precision)


def test_without_a_name_and_without_runs() -> None:
    with pytest.raises(ModelError, match="no finished run below runs/") as caught:
        load(None)
    assert "-m resnet50" in (caught.value.hint or "")


def test_random_weights_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = load(f"{SMALL}:none")
    torch.manual_seed(2)
    second = load(f"{SMALL}:none")
    assert torch.equal(logits(first.classifier), logits(second.classifier))
    assert len(first.classes) == 1000
    assert first.classes[:2] == ("tench", "goldfish")
    assert first.preprocessing == eval_preprocessing(find_backbone(SMALL), None)
    assert first.source == f"{SMALL}:none"


def test_own_backbone_has_numbered_classes() -> None:
    loaded = load("simple_cnn:none")
    assert loaded.classes[:2] == ("class 0", "class 1")
    assert len(loaded.classes) == loaded.classifier.num_classes
    assert loaded.preprocessing.crop == 64


def test_own_backbone_without_weights() -> None:
    with pytest.raises(UsageError, match="simple_cnn has no pretrained weights"):
        load("simple_cnn")


def test_name_with_a_weights_file() -> None:
    expected = save_torchvision("weights.pth")
    loaded = load(f"{SMALL}:weights.pth")
    assert_same_logits(loaded, expected)
    assert loaded.classes[0] == "tench"
    assert loaded.preprocessing == eval_preprocessing(find_backbone(SMALL), None)
    assert loaded.source == f"{SMALL}:weights.pth"


def test_weights_file_with_other_classes() -> None:
    expected = save_torchvision("weights.pth", num_classes=5)
    loaded = load(f"{SMALL}:weights.pth")
    assert_same_logits(loaded, expected)
    assert loaded.classes == tuple(f"class {index}" for index in range(5))
    assert loaded.classifier.num_classes == 5


def test_weights_file_of_another_backbone() -> None:
    save_torchvision("weights.pth", name="squeezenet1_1")
    with pytest.raises(ModelError, match="does not fit shufflenet_v2_x0_5") as caught:
        load(f"{SMALL}:weights.pth")
    assert "squeezenet1_1" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["", ":", ":DEFAULT", ":IMAGENET1K_V1"])
def test_published_weights(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    # The published file cannot be had here: another one takes its place.
    expected = save_torchvision("random.pth")
    found = Path("random.pth")
    monkeypatch.setattr("vtrain.models.weights.find_published_file", lambda *_, **__: found)
    loaded = load(SMALL + text)
    assert_same_logits(loaded, expected)
    assert loaded.source == f"{SMALL}:{text.strip(':') or 'DEFAULT'}"


@pytest.mark.parametrize(("weights", "resize"), [("IMAGENET1K_V1", 256), ("IMAGENET1K_V2", 232)])
def test_preprocessing_is_that_of_the_named_weights(
    monkeypatch: pytest.MonkeyPatch, weights: str, resize: int
) -> None:
    expected = save_torchvision("random.pth", name="mobilenet_v2")
    asked = []

    def find(url: str, *_: object, **__: object) -> Path:
        asked.append(url)
        return Path("random.pth")

    monkeypatch.setattr("vtrain.models.weights.find_published_file", find)
    loaded = load(f"mobilenet_v2:{weights}")
    assert loaded.preprocessing.resize == resize
    assert len(asked) == 1
    assert_same_logits(loaded, expected)


def fails(model: str, kind: type[VtrainError] = ModelError) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        load(model)
    assert caught.type is kind
    return caught.value.message, caught.value.hint or ""


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("resnet5", "resnet50"),
        ("resnt50:IMAGENET1K_V1", "resnet50"),
        ("mobilenetv3_small:none", "mobilenet_v3_small"),
        ("simplecnn:weights.pth", "simple_cnn"),
        ("runs/flowers-01", "runs/flowers-001"),
        ("runs/flowers-001/model.safetensor", "runs/flowers-001/model.safetensors"),
    ],
)
def test_typo_gets_a_suggestion(typo: str, meant: str) -> None:
    save_run("runs/flowers-001")
    message, hint = fails(typo)
    assert message == f"no model {typo!r}: no such path, run or backbone"
    assert hint.startswith(f"did you mean {meant}? ")


def test_far_off_name_gets_none() -> None:
    _, hint = fails("qqqqqq")
    assert hint == "give a run folder, a model file, or a name that `vtrain backbones` lists"


def test_unknown_weights_name() -> None:
    message, hint = fails("mobilenet_v2:IMAGENET1K_V3", UsageError)
    assert message.startswith("unknown weights 'IMAGENET1K_V3' of mobilenet_v2, did you mean")
    assert "IMAGENET1K_V1, IMAGENET1K_V2" in hint


def test_missing_weights_file() -> None:
    message, _ = fails(f"{SMALL}:no/weights.pth")
    assert message == "no weights file or run folder 'no/weights.pth'"


def test_run_folder_as_weights_of_a_name() -> None:
    save_run()
    message, hint = fails("simple_cnn:runs/a")
    assert "is a vtrain model or a folder" in message
    assert hint == "a vtrain model or run is used by its path alone: runs/a"


def test_folder_without_a_model() -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/last.ckpt").touch()
    message, hint = fails("runs/a")
    assert message == "runs/a holds no model.safetensors"
    assert "--resume" in hint


def test_files_that_are_no_models() -> None:
    save_torchvision("weights.pth")
    save_tensors(Path("plain.safetensors"), {"weight": torch.zeros(1)}, {})
    for name in ("weights.pth", "plain.safetensors"):
        message, hint = fails(name)
        assert name in message
        assert hint == f"for plain weights type: -m BACKBONE:{name}"


@pytest.mark.parametrize("name", ["x" * 300, f"{SMALL}:{'x' * 300}", "a\0b"])
def test_name_that_no_file_can_have(name: str) -> None:
    message, _ = fails(name)
    assert "model" in message
