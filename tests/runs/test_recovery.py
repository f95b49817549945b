"""What a run comes back from: damaged files, losses that are not finite, a disk too full."""

import errno
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.runs import (
    Watcher,
    assert_same_run,
    draw_tiny_data,
    read_model,
    read_rows,
    run,
    run_until,
)
from vtrain.errors import (
    DivergedError,
    ExitCode,
    InterruptedRunError,
    ModelError,
    NewerFormatError,
    ResourceError,
    StoppedError,
    UsageError,
)
from vtrain.models.model_file import BANK, load_model_file
from vtrain.runs.checkpoint import load_checkpoint
from vtrain.system.terminal import Console
from vtrain.training.step import Trainer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny data and a config."""
    monkeypatch.chdir(tmp_path)
    draw_tiny_data()
    return tmp_path


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of all runs."""
    lines: list[str] = []
    monkeypatch.setattr(Console, "warn", lambda self, message: lines.append(message))
    return lines


EVERY_STEP = "train.save_every_steps=1"


# --- the checkpoint before the last --------------------------------------------------------------


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("fault", [damage, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_checkpoint_falls_back_to_the_one_before(said: list[str], fault: Any) -> None:
    whole = run("run_dir=runs/whole")
    run_until(7, "run_dir=runs/parts", EVERY_STEP)
    fault(Path("runs/parts/last.ckpt"))
    resumed = run("run_dir=runs/parts", resume=True)
    assert_same_run(whole.run_dir, resumed.run_dir)
    (line,) = said
    assert "runs/parts/last.ckpt" in line
    assert line.endswith("going on from the checkpoint before it, of step 6")


def test_the_damaged_checkpoint_never_becomes_the_one_before(said: list[str]) -> None:
    run_until(7, "run_dir=runs/parts", EVERY_STEP)
    damage(Path("runs/parts/last.ckpt"))
    stop_at_once(1, resume=True)
    assert load_checkpoint(Path("runs/parts/last.ckpt")).state.step == 6
    assert Path("runs/parts/last.ckpt.damaged").exists()
    stop_at_once(3, EVERY_STEP, resume=True)
    assert load_checkpoint(Path("runs/parts/previous.ckpt")).state.step == 7


def stop_at_once(step: int, *overrides: str, resume: bool) -> None:
    """Ctrl-C at the end of a step, which nothing is saved after."""

    def stop(steps: int) -> None:
        if steps == step:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError):
        run("run_dir=runs/parts", *overrides, resume=resume, reporter=Watcher(on_step=stop))


def test_two_damaged_checkpoints_are_both_named() -> None:
    run_until(7, "run_dir=runs/parts", EVERY_STEP)
    damage(Path("runs/parts/last.ckpt"))
    damage(Path("runs/parts/previous.ckpt"))
    with pytest.raises(ModelError, match=r"last\.ckpt .*; .*previous\.ckpt ") as caught:
        run("run_dir=runs/parts", resume=True)
    assert "another run_dir" in str(caught.value.hint)


def test_checkpoint_of_a_newer_version_is_no_damaged_one(monkeypatch: pytest.MonkeyPatch) -> None:
    run_until(7, "run_dir=runs/parts", EVERY_STEP)
    monkeypatch.setattr("vtrain.runs.checkpoint.CHECKPOINT_FORMAT", 0)
    with pytest.raises(NewerFormatError, match="this vtrain reads up to 0"):
        run("run_dir=runs/parts", resume=True)
    assert Path("runs/parts/previous.ckpt").exists()


def test_finished_run_keeps_one_checkpoint() -> None:
    result = run("run_dir=runs/a", EVERY_STEP)
    assert not (result.run_dir / "previous.ckpt").exists()


# --- the best model ------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [damage, Path.unlink])
def test_lost_best_model_is_made_up_for_from_the_checkpoint(said: list[str], fault: Any) -> None:
    """Two epochs are done; the weights of the second are in the checkpoint."""
    run_until(10, "run_dir=runs/parts", "train.epochs=2")
    checkpoint = load_checkpoint(Path("runs/parts/last.ckpt"))
    # The signal comes with the last step of an epoch, before that is validated.
    assert (checkpoint.state.epoch, checkpoint.state.batch) == (1, 5)
    fault(Path("runs/parts/model.safetensors"))
    result = run("run_dir=runs/parts", resume=True)
    assert "the best model so far is lost" in said[0]
    assert said[0].endswith("the best from epoch 2 on is kept")
    assert result.best_epoch == 2
    _, model_file = load_model_file(Path("runs/parts/model.safetensors"))
    assert model_file.metrics["epoch"] == 2


def assert_same_weights(run_dir: Path, weights: Mapping[str, Tensor]) -> None:
    kept = read_model(run_dir)
    del kept[BANK]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in kept.items())


def test_lost_best_model_of_a_run_that_is_extended(said: list[str]) -> None:
    first = run("run_dir=runs/a")
    weights = load_checkpoint(first.run_dir / "last.ckpt").model
    (first.run_dir / "model.safetensors").unlink()
    second = run("run_dir=runs/a", "train.epochs=3", "optim.lr=3e-3", resume=True)
    assert "the best from epoch 2 on is kept" in said[0]
    assert second.best_epoch in (2, 3)
    if second.best_epoch == 2:
        assert_same_weights(second.run_dir, weights)


@pytest.mark.parametrize("fault", [damage, Path.unlink])
@pytest.mark.parametrize("finished", [True, False])
def test_lost_best_model_with_no_epoch_left(said: list[str], fault: Any, finished: bool) -> None:
    first = run("run_dir=runs/a")
    weights = load_checkpoint(first.run_dir / "last.ckpt").model
    fault(first.run_dir / "model.safetensors")
    if not finished:
        (first.run_dir / "result.json").unlink()
    second = run("run_dir=runs/a", resume="auto")
    assert (second.best_epoch, second.already_finished) == (2, False)
    assert_same_weights(second.run_dir, weights)


def test_lost_best_model_does_not_look_like_lost_patience(said: list[str]) -> None:
    settings = ["run_dir=runs/parts", "train.epochs=4", "train.early_stop=1"]
    run_until(7, *settings)
    Path("runs/parts/model.safetensors").unlink()
    result = run(*settings, resume=True)
    assert result.best_epoch >= 2
    assert (result.run_dir / "model.safetensors").exists()


def test_finished_run_needs_no_checkpoint() -> None:
    first = run("run_dir=runs/a")
    (first.run_dir / "last.ckpt").unlink()
    assert run("run_dir=runs/a", resume="auto").already_finished
    (first.run_dir / "result.json").unlink()  # as after a kill before the first checkpoint
    assert not run("run_dir=runs/a", resume="auto").already_finished


@pytest.mark.parametrize("content", ["{}", '{"val_top1": "high"}', "[1]", "null", "", '"x"'])
def test_damaged_result_is_made_again(content: str) -> None:
    first = run("run_dir=runs/a")
    path = first.run_dir / "result.json"
    before = json.loads(path.read_text())
    path.write_text(content)
    run("run_dir=runs/a", resume=True)
    after = json.loads(path.read_text())
    assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_checkpoint_that_is_a_link_to_another_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_until(7, "run_dir=runs/parts")
    elsewhere = tmp_path / "elsewhere.ckpt"
    Path("runs/parts/last.ckpt").rename(elsewhere)
    Path("runs/parts/last.ckpt").symlink_to(elsewhere)

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    run("run_dir=runs/parts", EVERY_STEP, resume=True)
    assert load_checkpoint(elsewhere).state.epoch == 2


# --- --resume auto -------------------------------------------------------------------------------


def test_auto_starts_then_continues_then_says_finished() -> None:
    whole = run("run_dir=runs/whole")

    def interrupt(step: int) -> None:
        if step == 7:
            signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(StoppedError, match="stopped at step 7") as caught:
        run(resume="auto", reporter=Watcher(on_step=interrupt))
    assert caught.value.exit_code == ExitCode.STOPPED
    second = run(resume="auto")
    assert second.run_dir == Path("runs/tiny-001")
    assert_same_run(whole.run_dir, second.run_dir)
    assert run(resume="auto").already_finished


def test_auto_with_a_run_dir() -> None:
    Path("runs/a").mkdir(parents=True)
    first = run("run_dir=runs/a", resume="auto")
    assert not first.already_finished
    assert run("run_dir=runs/a", resume="auto").already_finished


def test_auto_does_not_take_any_folder_for_a_run() -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/thesis.tex").touch()
    with pytest.raises(UsageError, match="not the folder of a run"):
        run("run_dir=runs/a", resume="auto")


# --- losses that are not finite ------------------------------------------------------------------


def spoil_steps(monkeypatch: pytest.MonkeyPatch, steps: list[int]) -> list[int]:
    """Make the gradient NaN at some steps, whenever they are computed; the steps as they come."""
    original = Trainer.exchange
    seen: list[int] = []

    @contextmanager
    def exchange(self: Trainer, model: nn.Module, is_last: bool) -> Iterator[None]:
        step = self.state.step + 1
        seen.append(step)
        with original(self, model, is_last):
            yield
        if step in steps:
            tensors = [each.grad for each in self.classifier.parameters()]
            for tensor in [*tensors, *self.classifier.buffers()]:
                if tensor is not None and tensor.is_floating_point():
                    tensor.fill_(float("nan"))

    monkeypatch.setattr(Trainer, "exchange", exchange)
    return seen


def test_stop_names_the_images_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_steps(monkeypatch, [7])
    with pytest.raises(DivergedError) as caught:
        run("run_dir=runs/a", EVERY_STEP)
    assert "not finite at step 7, whose images are images/train/" in caught.value.message
    assert caught.value.message.count("images/train/") == 4
    assert "train.on_nan=rollback" in str(caught.value.hint)
    assert load_checkpoint(Path("runs/a/last.ckpt")).state.step == 6
    assert "images of step 7: images/train/" in Path("runs/a/log.txt").read_text()


@pytest.mark.parametrize("every", [[], [EVERY_STEP], ["train.save_every_steps=3"]])
def test_rollback_leaves_the_step_out(
    monkeypatch: pytest.MonkeyPatch, said: list[str], every: list[str]
) -> None:
    seen = spoil_steps(monkeypatch, [7])
    result = run("run_dir=runs/a", "train.on_nan=rollback", *every)
    assert seen.count(7) == 1
    assert "leaving step 7 out" in said[0]
    assert all(torch.isfinite(tensor).all() for tensor in read_model(result.run_dir).values())
    assert [row["step"] for row in read_rows(result.run_dir)] == [5, 10]
    assert load_checkpoint(result.run_dir / "last.ckpt").state.left_out == [7]


def test_rollback_gives_the_same_bits_from_any_checkpoint(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    spoil_steps(monkeypatch, [2, 7])
    one = run("run_dir=runs/a", "train.on_nan=rollback", EVERY_STEP)
    other = run("run_dir=runs/b", "train.on_nan=rollback")
    assert_same_run(one.run_dir, other.run_dir)


def test_rollback_then_kill_then_resume(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    spoil_steps(monkeypatch, [4])
    overrides = ["train.on_nan=rollback", EVERY_STEP, "train.ema=0.9", "train.accumulate=2"]
    whole = run("run_dir=runs/whole", *overrides)
    run_until(5, "run_dir=runs/parts", *overrides)
    assert_same_run(whole.run_dir, run("run_dir=runs/parts", *overrides, resume=True).run_dir)


def test_a_run_that_diverges_again_and_again_stops(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    spoil_steps(monkeypatch, list(range(6, 11)))
    with pytest.raises(DivergedError, match="at step 10"):
        run("run_dir=runs/a", "train.on_nan=rollback")
    assert len(said) == 4  # the fifth step of the epoch would have been all of it
    assert load_checkpoint(Path("runs/a/last.ckpt")).state.step <= 5


def test_run_that_diverged_goes_on_with_a_rollback(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """As the hint of the error says."""
    spoil_steps(monkeypatch, [7])
    whole = run("run_dir=runs/whole", "train.on_nan=rollback")
    with pytest.raises(DivergedError):
        run("run_dir=runs/parts")
    resumed = run("run_dir=runs/parts", "train.on_nan=rollback", resume=True)
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_each_bad_step_names_its_own_images(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(Trainer, "looks_now", lambda self, *, last: last)
    spoil_steps(monkeypatch, [2, 4])
    run("run_dir=runs/a", "train.on_nan=rollback")
    assert [line.count("images/train/") for line in said] == [4, 4]


# --- the disk ------------------------------------------------------------------------------------


def test_too_full_a_disk_is_said_before_training(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    usage = shutil.disk_usage(".")
    run_until(7, "run_dir=runs/parts")
    last = Path("runs/parts/last.ckpt")
    before = last.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vtrain.system.files.shutil.disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(ResourceError, match=r"need [\d,]+ bytes in runs/parts") as caught:
            run("run_dir=runs/parts", resume=True)
    assert "another disk" in str(caught.value.hint)
    assert last.read_bytes() == before
    assert run("run_dir=runs/parts", resume=True).epochs == 2
    log = Path("runs/parts/log.txt").read_text()
    assert "error: the checkpoints of this run need" in log


def test_the_estimate_is_that_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []
    monkeypatch.setattr(
        "vtrain.runs.saved_state.require_disk_space", lambda run_dir, **sizes: asked.append(sizes)
    )
    result = run("run_dir=runs/a", "train.ema=0.9")
    (sizes,) = asked
    last, model = (result.run_dir / name for name in ("last.ckpt", "model.safetensors"))
    overhead = 60_000  # names, metrics, config
    assert 0 <= last.stat().st_size - sizes["checkpoint_bytes"] < overhead
    assert 0 <= model.stat().st_size - sizes["model_bytes"] < overhead
    assert json.loads((result.run_dir / "result.json").read_text())["epochs"] == 2


# --- what must not change ------------------------------------------------------------------------


def test_resume_needs_neither_the_weights_nor_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    base = run("run_dir=runs/base", "train.epochs=1")
    settings = ["freeze=lp-ft", f"model.weights={base.run_dir}"]
    whole = run(*settings, "run_dir=runs/whole", "train.epochs=4")
    run_until(12, *settings, "run_dir=runs/parts", "train.epochs=4")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded again")

    monkeypatch.setattr("vtrain.runs.plan.load_weights", refuse)
    resumed = run(*settings, "run_dir=runs/parts", "train.epochs=4", resume=True)
    assert_same_run(whole.run_dir, resumed.run_dir)


def test_other_preprocessing_is_refused() -> None:
    """As when the run that the weights come from was trained anew, on larger images."""
    sizes = ["data.image_size=null", "freeze=lp-ft", "model.weights=runs/base", "train.epochs=4"]
    run("run_dir=runs/base", "train.epochs=1")
    run_until(7, *sizes, "run_dir=runs/parts")
    shutil.rmtree("runs/base")
    run("run_dir=runs/base", "train.epochs=1", "data.image_size=48")
    with pytest.raises(UsageError, match=r"preprocessing\.crop: 32 -> 48"):
        run(*sizes, "run_dir=runs/parts", resume=True)


def test_other_images_are_refused() -> None:
    run_until(7, "run_dir=runs/parts")
    next(Path("images/train/bee").iterdir()).unlink()
    with pytest.raises(UsageError, match=r"data\.train count: 18 -> 17"):
        run("run_dir=runs/parts", resume=True)
