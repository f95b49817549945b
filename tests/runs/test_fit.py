"""Whole runs on drawn images: results, freezing, resuming, and what stops a run."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import (
    CONFIG,
    Watcher,
    assert_same_run,
    draw_tiny_data,
    load,
    read_model,
    read_rows,
    run,
    run_until,
)
from tests.helpers.tiny import break_image, draw_labelled
from vtrain.data.transforms import EvalTransform
from vtrain.errors import (
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRunError,
    ModelError,
    ResourceError,
    RunLockedError,
    StoppedError,
    UsageError,
)
from vtrain.models.classifier import Classifier
from vtrain.models.freezing import verify_frozen
from vtrain.models.model_file import load_model_file, save_model
from vtrain.runs.checkpoint import load_checkpoint, save_checkpoint
from vtrain.runs.evaluation_files import read_predictions
from vtrain.runs.folder import claim_run_dir, lock_run
from vtrain.runs.settings import load_settings
from vtrain.runs.validation import Validation
from vtrain.system.reporter import SILENT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny data and a config."""
    monkeypatch.chdir(tmp_path)
    draw_tiny_data()
    return tmp_path


# --- a run and its folder ------------------------------------------------------------------------


def test_run_folder_holds_everything_and_the_model_stands_alone() -> None:
    result = run()
    run_dir = result.run_dir
    assert run_dir == Path("runs/tiny-001")
    assert {path.name for path in run_dir.iterdir()} == {
        "config.yaml",
        "config.resolved.yaml",
        "env.json",
        "data.json",
        "plan.json",
        "model.safetensors",
        "last.ckpt",
        "metrics.jsonl",
        "metrics.csv",
        "predictions-val.csv",
        "result.json",
        "evaluation-val.json",
        "features-val.safetensors",
        "log.txt",
        "run.lock",
    }
    assert (run_dir / "config.yaml").read_text() == CONFIG
    resolved = load_settings(run_dir / "config.resolved.yaml").config
    assert resolved == load(f"run_dir={run_dir.absolute()}").config
    data = json.loads((run_dir / "data.json").read_text())
    assert data["classes"] == ["ant", "bee", "cow"]
    assert data["train"]["per_class"] == {"ant": 6, "bee": 7, "cow": 5}
    classifier, model_file = load_model_file(run_dir / "model.safetensors")
    assert model_file.classes == ("ant", "bee", "cow")
    assert (model_file.preprocessing.crop, classifier.num_classes) == (32, 3)
    assert model_file.metrics["val_top1"] == result.val_top1
    assert [row["epoch"] for row in read_rows(run_dir)] == [1, 2]
    assert [row["step"] for row in read_rows(run_dir)] == [5, 10]


def test_best_epoch_is_the_one_that_is_saved() -> None:
    result = run("train.epochs=4")
    rows = read_rows(result.run_dir)
    best = max(rows, key=lambda row: (row["val_top1"], -row["val_loss"], -row["epoch"]))
    assert (result.best_epoch, result.val_top1) == (best["epoch"], best["val_top1"])
    answers = read_predictions(result.run_dir, "val")
    assert sum(row.correct for row in answers) / len(answers) == result.val_top1


def test_same_seed_same_bits_whatever_the_workers() -> None:
    one, other = run("data.augment=light"), run("data.augment=light", "data.workers=2")
    assert_same_run(one.run_dir, other.run_dir)
    third = run("data.augment=light", "seed=1")
    assert read_rows(one.run_dir) != read_rows(third.run_dir)


def test_learns_what_can_be_learnt(folder: Path) -> None:
    # Each drawn class has images of its own, so that the training set can be learnt by heart.
    shutil.copytree("images/train", "images/copies")
    result = run("data.val=images/copies", "train.epochs=25", "train.label_smoothing=0")
    assert result.val_top1 >= 0.8


def test_test_split_is_evaluated_once_at_the_end() -> None:
    draw_labelled(Path("images/test"), {"ant": 1, "cow": 2})
    result = run("data.test=images/test")
    assert result.test_top1 is not None
    assert len((result.run_dir / "predictions-test.csv").read_text().splitlines()) == 4
    assert all("test" not in row for row in read_rows(result.run_dir))


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.balance=sampler"],
        ["data.balance=loss"],
        ["data.mixup=0.2", "data.cutmix=1.0", "data.erasing=0.5"],
        ["data.augment=trivial"],
        ["train.accumulate=3", "train.clip_norm=null"],
        ["optim.optimizer=sgd", "optim.lr=0.05", "optim.schedule=step"],
        ["train.precision=bf16"],
        ["train.ema=0.9"],
        ["model.head={type: mlp, hidden: 16, dropout: 0.2}", "optim.layer_decay=0.5"],
        ["model.batch_norm=frozen"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_setting_trains(overrides: list[str]) -> None:
    rows = read_rows(run(*overrides).run_dir)
    assert len(rows) == 2
    assert all(0 <= row["val_top1"] <= 1 and row["train_loss"] > 0 for row in rows)


def test_last_batch_of_one_trains() -> None:
    # 17 images in batches of 4 leave one over, which BatchNorm cannot train on alone.
    Path("images/train/cow/000.jpg").unlink()
    assert read_rows(run().run_dir)[-1]["step"] == 8


def test_early_stopping_ends_the_run() -> None:
    result = run("train.epochs=30", "train.early_stop=2", "optim.lr=1e-9", "optim.backbone_lr=1e-9")
    assert result.epochs < 30
    assert result.epochs == result.best_epoch + 2
    again = run(
        "train.epochs=30",
        "train.early_stop=2",
        "optim.lr=1e-9",
        "optim.backbone_lr=1e-9",
        resume=True,
    )
    assert again.already_finished


# --- freezing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "frozen", "trained"),
    [
        ("head", ["stem", "block1", "block2", "block3"], ["head"]),
        ("until:block1", ["stem", "block1"], ["block2", "block3", "head"]),
        ("[{pattern: block2, lr_scale: 0.5}, {pattern: '*', lr_scale: null}]",
         ["stem", "block1", "block3", "head"], ["block2"]),
    ],
)  # fmt: skip
def test_frozen_is_bitwise_frozen(policy: str, frozen: list[str], trained: list[str]) -> None:
    source = run("train.epochs=1").run_dir
    result = run(f"model.weights={source}", f"freeze={policy}", "train.ema=0.5")
    start, _ = load_model_file(source / "model.safetensors")
    before, after = start.state_dict(), read_model(result.run_dir)
    last = load_checkpoint(result.run_dir / "last.ckpt").model
    for name, tensor in before.items():
        stage = start.stage_of(name)
        if stage in frozen and stage != "head":
            assert torch.equal(tensor, after[name]), name
            assert torch.equal(tensor, last[name]), name
    for stage in trained:
        names = [name for name in before if start.stage_of(name) == stage]
        assert any(not torch.equal(before[name], last[name]) for name in names), stage


def test_lp_ft_probes_first_then_trains_everything() -> None:
    source = run("train.epochs=1").run_dir
    overrides = [f"model.weights={source}", "freeze=lp-ft", "train.epochs=3"]
    result = run(*overrides, "train.probe_epochs=1")
    rows = read_rows(result.run_dir)
    assert [row["phase"] for row in rows] == ["probe", "finetune", "finetune"]
    log = (result.run_dir / "log.txt").read_text()
    assert "frozen tensors are bit for bit as loaded" in log


def test_gradual_thaws_from_the_last_stage() -> None:
    source = run("train.epochs=1").run_dir
    result = run(f"model.weights={source}", "freeze=gradual", "train.epochs=3")
    phases = [row["phase"] for row in read_rows(result.run_dir)]
    assert phases == ["thaw-0", "thaw-1", "thaw-2"]
    rates = [row["lr"] for row in read_rows(result.run_dir)]
    assert rates[0] > rates[1] > rates[2]  # one cosine over all phases


def test_drift_of_a_frozen_tensor_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    source = run("train.epochs=1").run_dir
    original = Validation.__call__
    buffer = next(name for name in read_model(source) if name.endswith("running_mean"))

    def drift_buffer(self: Validation, candidate: Classifier) -> Any:
        self.plan.classifier.get_buffer(buffer).add_(1e-6)
        return original(self, candidate)

    monkeypatch.setattr(Validation, "__call__", drift_buffer)
    with pytest.raises(ModelError, match="frozen tensors changed during training"):
        run(f"model.weights={source}", "freeze=head")


def test_digests_see_a_single_bit() -> None:
    result = run("train.epochs=1")
    classifier, _ = load_model_file(result.run_dir / "model.safetensors")
    from vtrain.models.freezing import FROZEN, ParamRule, apply_freeze, frozen_digests

    apply_freeze(classifier, [ParamRule("head", 1.0), FROZEN])
    digests = frozen_digests(classifier)
    assert verify_frozen(classifier, digests) == len(digests) > 10
    weight = next(classifier.backbone.parameters())
    weight.data.view(torch.int32).reshape(-1)[0] ^= 1
    with pytest.raises(ModelError, match="1 of"):
        verify_frozen(classifier, digests)


# --- resuming ------------------------------------------------------------------------------------

VARIED = (
    "train.epochs=4",
    "train.ema=0.9",
    "train.accumulate=2",
    "data.augment=light",
    "data.mixup=0.2",
    "model.head={type: linear, dropout: 0.3}",
)


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (5, 0), (9, 0), (7, 2)])
def test_resumed_run_equals_the_uninterrupted_one(
    monkeypatch: pytest.MonkeyPatch, step: int, workers: int
) -> None:
    _compare_resumed(step, f"data.workers={workers}")


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", range(1, 12))
def test_resumed_run_equals_the_uninterrupted_one_everywhere(
    monkeypatch: pytest.MonkeyPatch, step: int, workers: int, precision: str
) -> None:
    _compare_resumed(step, f"data.workers={workers}", f"train.precision={precision}")


def _compare_resumed(step: int, *more: str) -> None:
    whole = run(*VARIED, *more, "run_dir=runs/whole")
    run_until(step, *VARIED, *more, "run_dir=runs/parts")
    # What is saved with two workers is resumed with none, and the other way round.
    resumed = run(*VARIED, *more, "run_dir=runs/parts", "data.workers=0", resume=True)
    assert not resumed.already_finished
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_resume_after_every_saved_step_and_phase() -> None:
    source = run("train.epochs=1", "run_dir=runs/source").run_dir
    base = [f"model.weights={source}", "freeze=lp-ft", "train.epochs=3", "train.probe_epochs=1"]
    whole = run(*base, "run_dir=runs/whole")
    for step in (5, 6, 15):  # the probe's last step, the next phase's first, the very last
        parts = f"run_dir=runs/parts-{step}"
        run_until(step, *base, parts)
        assert_same_run(whole.run_dir, run(*base, parts, resume=True).run_dir)


def test_killed_between_saves_repeats_the_steps() -> None:
    whole = run("run_dir=runs/whole", "train.save_every_steps=2")

    def die(step: int) -> None:
        if step == 9:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="checkpoint is of step"):
        run("run_dir=runs/parts", "train.save_every_steps=2", reporter=Watcher(on_step=die))
    assert load_checkpoint(Path("runs/parts/last.ckpt")).state.step == 8
    resumed = run("run_dir=runs/parts", "train.save_every_steps=2", resume=True)
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_finished_run_says_so_and_more_epochs_extend_it() -> None:
    first = run("run_dir=runs/a")
    again = run("run_dir=runs/a", resume=True)
    assert again.already_finished
    assert (again.val_top1, again.epochs) == (first.val_top1, 2)
    longer = run("run_dir=runs/a", "train.epochs=4", resume=True)
    assert not longer.already_finished
    assert [row["epoch"] for row in read_rows(longer.run_dir)] == [1, 2, 3, 4]
    with pytest.raises(UsageError, match=r"train\.epochs: 4 -> 3"):
        run("run_dir=runs/a", "train.epochs=3", resume=True)


def test_resume_without_run_dir_takes_the_newest() -> None:
    run()
    run_until(3)
    assert run(resume=True).run_dir == Path("runs/tiny-002")


def test_resume_refuses_another_experiment() -> None:
    run_until(3, "run_dir=runs/a")
    with pytest.raises(UsageError) as caught:
        run("run_dir=runs/a", "optim.lr=1e-5", resume=True)
    assert "optim.lr: 0.003 -> 1e-05" in caught.value.message
    break_image(Path("images/train/ant/new.jpg")).unlink()
    draw_labelled(Path("images/train"), {"ant": 7})
    with pytest.raises(UsageError, match=r"data\.train count: 18 -> 19"):
        run("run_dir=runs/a", resume=True)


def test_nothing_to_resume() -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        run(resume=True)
    with pytest.raises(UsageError, match="nothing to resume"):
        run("run_dir=runs/a", resume=True)


def test_damaged_checkpoint_is_refused() -> None:
    run_until(3, "run_dir=runs/a")
    path = Path("runs/a/last.ckpt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"last\.ckpt"):
        run("run_dir=runs/a", resume=True)


def test_ctrl_c_saves_and_says_how_to_go_on() -> None:
    before = signal.getsignal(signal.SIGINT)
    run_until(2, "run_dir=runs/a", number=signal.SIGINT)
    assert load_checkpoint(Path("runs/a/last.ckpt")).state.step == 2
    assert signal.getsignal(signal.SIGINT) is before


# --- what stops a run ----------------------------------------------------------------------------


def test_existing_run_folder_is_never_overwritten() -> None:
    run("run_dir=runs/a")
    before = (Path("runs/a") / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        run("run_dir=runs/a")
    assert (Path("runs/a") / "model.safetensors").read_bytes() == before


def test_run_folder_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    run("run_dir=runs/a")
    monkeypatch.setattr("vtrain.runs.folder.LOCK_WAIT_SECONDS", 0.1)
    with lock_run(Path("runs/a"), reporter=SILENT), pytest.raises(RunLockedError, match="in use"):
        run("run_dir=runs/a", resume=True)


def test_unreadable_images_are_all_named_before_training() -> None:
    bad = [break_image(Path(f"images/{name}/broken.jpg")) for name in ("train/ant", "val/bee")]
    with pytest.raises(DataError) as caught:
        run()
    assert "2 of 26 images cannot be read" in caught.value.message
    assert all(str(path) in caught.value.message for path in bad)
    assert not Path("runs").exists()
    result = run("data.on_bad_image=skip")
    data = json.loads((result.run_dir / "data.json").read_text())
    assert sorted(each["path"] for each in data["bad_images"]) == sorted(
        str(path.absolute()) for path in bad
    )
    assert data["train"]["count"] == 18


def test_class_only_in_val() -> None:
    draw_labelled(Path("images/val"), {"dog": 1})
    with pytest.raises(DataError, match="dog"):
        run()


def test_batch_larger_than_the_data_set() -> None:
    with pytest.raises(ConfigError, match=r"data\.batch_size: 19 is more than the 18"):
        run("data.batch_size=19")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(UsageError, match="device cuda was asked for"):
        run("train.device=cuda")


def test_rules_that_freeze_everything() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        run("freeze=[{pattern: '*', lr_scale: null}]")


def test_loss_that_is_not_finite_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class LossThatBreaks(torch.nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            self.calls += 1
            loss = super().forward(logits, labels)
            return loss * float("inf") if self.calls == 3 else loss

    monkeypatch.setattr("vtrain.runs.trainer_setup.build_loss", lambda **_: LossThatBreaks())
    with pytest.raises(DivergedError, match="not finite at step 3"):
        run("train.save_every_steps=1", "run_dir=runs/a")
    assert load_checkpoint(Path("runs/a/last.ckpt")).state.step == 2


def test_weights_of_another_architecture() -> None:
    source = run("train.epochs=1").run_dir
    with pytest.raises(ModelError, match="holds a simple_cnn"):
        run(f"model.weights={source}", "model.backbone=separable_cnn", "model.options={}")


def test_image_that_vanishes_during_training() -> None:
    watcher = Watcher(on_epoch=lambda _: Path("images/train/bee/003.png").unlink())
    with pytest.raises(DataError, match=r"bee/003\.png was readable before training"):
        run("run_dir=runs/a", reporter=watcher)


def test_full_disk_keeps_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise ResourceError("cannot write model.safetensors: no space left")

    monkeypatch.setattr("vtrain.runs.saved_state.save_model", full)
    with pytest.raises(ResourceError, match="no space left"):
        run("run_dir=runs/a", "train.save_every_steps=2")
    assert load_checkpoint(Path("runs/a/last.ckpt")).state.step == 4
    monkeypatch.setattr("vtrain.runs.saved_state.save_model", save_model)
    assert run("run_dir=runs/a", "train.save_every_steps=2", resume=True).epochs == 2


def test_validation_uses_the_evaluation_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    original = EvalTransform.__init__

    def note(self: EvalTransform, preprocessing: Any) -> None:
        seen.append((preprocessing.resize, preprocessing.crop))
        original(self, preprocessing)

    monkeypatch.setattr(EvalTransform, "__init__", note)
    run("train.epochs=1")
    assert set(seen) == {(32, 32)}


def test_early_stopping_is_counted_in_the_last_phase() -> None:
    source = run("train.epochs=1").run_dir
    overrides = [f"model.weights={source}", "freeze=lp-ft", "train.epochs=8"]
    result = run(
        *overrides, "train.probe_epochs=4", "train.early_stop=1", "optim.lr=1e-9",
        "optim.backbone_lr=1e-9",
    )  # fmt: skip
    rows = read_rows(result.run_dir)
    assert [row["phase"] for row in rows][:5] == ["probe"] * 4 + ["finetune"]
    assert len(rows) < 8


def test_resume_leaves_a_folder_that_is_no_run_alone() -> None:
    Path("mine").mkdir()
    (Path("mine") / "config.yaml").write_text("precious: 1")
    (Path("mine") / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="mine is not the folder of a run"):
        run("run_dir=mine", resume=True)
    assert sorted(path.name for path in Path("mine").iterdir()) == ["config.yaml", "notes.txt"]


def test_gradient_that_is_not_finite_never_reaches_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class LossWithBadGradient(torch.nn.CrossEntropyLoss):
        calls = 0

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            self.calls += 1
            loss = super().forward(logits, labels)
            if self.calls == 3:
                # 0 in the forward pass; the gradient of the root at 0 is infinite.
                loss = loss + torch.sqrt((logits - logits.detach()).abs().sum())
            return loss

    monkeypatch.setattr("vtrain.runs.trainer_setup.build_loss", lambda **_: LossWithBadGradient())
    with pytest.raises(DivergedError, match="not finite at step 3"):
        run("train.save_every_steps=1", "run_dir=runs/a")
    checkpoint = load_checkpoint(Path("runs/a/last.ckpt"))
    assert checkpoint.state.step == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.model.values())


def test_signal_during_validation_is_answered_there() -> None:
    whole = run("run_dir=runs/whole")
    validations = []

    def interrupt(label: str) -> None:
        validations.append(label)
        if validations.count("validation") == 3:  # two batches each
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match="stopped at step 10"):
        run("run_dir=runs/parts", reporter=Watcher(on_progress=interrupt))
    assert_same_run(whole.run_dir, run("run_dir=runs/parts", resume=True).run_dir)


def test_batch_of_one_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="BatchNorm") as caught:
        run("data.batch_size=1", "model.backbone=resnet18", "model.options={}",
            "train.epochs=1")  # fmt: skip
    assert "model.batch_norm=frozen" in (caught.value.hint or "")


def test_early_stopped_run_goes_on_with_more_patience() -> None:
    still = ["optim.lr=1e-9", "optim.backbone_lr=1e-9", "train.epochs=9", "run_dir=runs/a"]
    first = run(*still, "train.early_stop=1")
    assert first.epochs < 9
    second = run(*still, "train.early_stop=3", resume=True)
    assert not second.already_finished
    assert second.epochs > first.epochs


def test_two_starts_get_two_folders() -> None:
    first = claim_run_dir(None, "tiny")
    assert claim_run_dir(None, "tiny") != first


def test_key_newer_than_the_checkpoint_does_not_stop_resume() -> None:
    run_until(3, "run_dir=runs/a")
    checkpoint = load_checkpoint(Path("runs/a/last.ckpt"))
    del checkpoint.config["train.compile"]
    save_checkpoint(Path("runs/a/last.ckpt"), checkpoint)
    assert run("run_dir=runs/a", resume=True).epochs == 2


def test_what_ends_a_run_stands_in_its_log() -> None:
    run_until(3, "run_dir=runs/a")
    log = (Path("runs/a") / "log.txt").read_text()
    assert "error: stopped at step 3" in log
    assert "hint: continue with the same command and --resume" in log


def test_run_that_diverges_keeps_the_best_of_its_short_epochs() -> None:
    def spoil(step: int) -> None:
        if step == 6:
            raise DivergedError("the training loss is not finite")

    with pytest.raises(DivergedError):
        run("run_dir=runs/a", "train.epochs=3", reporter=Watcher(on_step=spoil))
    _, model_file = load_model_file(Path("runs/a/model.safetensors"))
    assert model_file.metrics["epoch"] == 1
