"""A dry run: what it foretells is what a run does, and nothing of it stays."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import draw_tiny_data, load, read_rows, run
from tests.helpers.tiny import draw_labelled
from vtrain.commands.dry_run import (
    build_dry_run_record,
    draw_rates,
    format_rough,
    format_step,
    show_classes,
    show_forecast,
    show_outline,
)
from vtrain.errors import ConfigError, ExitCode, InterruptedRunError, ResourceError, UsageError
from vtrain.runs.dry_run import (
    Forecast,
    Outline,
    build_outline,
    build_rate_curve,
    dry_run,
    measure,
    require_room,
)
from vtrain.runs.plan import build_plan
from vtrain.system.terminal import Console
from vtrain.training.memory import PeakMemory, saved_activations
from vtrain.training.step import Trainer


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with tiny data, weights to freeze, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    draw_tiny_data()
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("source"))
        draw_tiny_data()
        yield f"model.weights={run('train.epochs=1').run_dir.absolute()}"


def try_run(*overrides: str, quiet: bool = True) -> tuple[Outline, Forecast]:
    console = Console(quiet=quiet)
    return dry_run(load(*overrides), reporter=console, on_plan=lambda _: None)


def outline(*overrides: str) -> Outline:
    return build_outline(build_plan(load(*overrides), Console(quiet=True)), Path("runs/tiny-001"))


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "scans" not in path.parts)


# --- nothing stays -------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["none", "head", "lp-ft", "until:block1"])
def test_nothing_is_written(folder: Path, weights: str, policy: str) -> None:
    before = list_files(folder)
    found, forecast = try_run(weights, f"freeze={policy}")
    after = [path for path in list_files(folder) if path != folder / "cache"]
    assert after == before
    assert found.run_dir == Path("runs/tiny-001")
    assert [phase.name for phase in forecast.phases] == [p.name for p in found.plan.phases]
    assert forecast.seconds > 0


def test_weights_are_as_before(weights: str) -> None:
    plan = build_plan(load(weights, "freeze=lp-ft"), Console(quiet=True))
    before = {name: each.clone() for name, each in plan.classifier.state_dict().items()}
    measure(plan, Path("runs/x"), Console(quiet=True))
    after = plan.classifier.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


# --- what it foretells ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["none", "lp-ft", "gradual"])
def test_curve_is_that_of_the_run(weights: str, policy: str) -> None:
    overrides = (weights, f"freeze={policy}", "train.epochs=4", "optim.warmup_epochs=0.5")
    found = outline(*overrides)
    curve = build_rate_curve(found)
    rates = dict(zip(curve.epochs, curve.head, strict=True))
    for row in read_rows(run(*overrides).run_dir):
        # A row has the rate of its last step.
        assert row["lr"] == pytest.approx(rates[(row["step"] - 1) / found.steps_per_epoch])


def test_frozen_backbone_has_no_rate(weights: str) -> None:
    found = outline(weights, "freeze=lp-ft")
    curve = build_rate_curve(found)
    thawed = [epoch for epoch, rate in zip(curve.epochs, curve.backbone, strict=True) if rate]
    assert min(thawed) == 1.0
    assert curve.backbone[0] is None
    text = draw_rates(outline(weights, "freeze=head"), io.StringIO())
    assert "learning rate of the head" in text
    assert "backbone" not in text


def test_long_run_has_a_curve_of_few_points() -> None:
    found = outline("train.epochs=1000")
    curve = build_rate_curve(found)
    assert 300 < len(curve.epochs) < 1000
    assert curve.epochs[-1] == pytest.approx(1000 - 1 / found.steps_per_epoch)


def test_features_are_foretold_once_and_not_again(weights: str) -> None:
    overrides = (weights, "freeze=lp-ft")
    probe, finetune = try_run(*overrides)[1].phases
    assert (probe.on_features, probe.feature_count) == (True, 24)
    assert (finetune.on_features, finetune.feature_count) == (False, 0)
    assert probe.feature_seconds > 0
    run(*overrides)
    probe = try_run(*overrides)[1].phases[0]
    assert (probe.on_features, probe.feature_count, probe.feature_seconds) == (True, 0, 0.0)


def test_validation_alone_on_features_where_training_images_change(weights: str) -> None:
    (phase,) = try_run(weights, "freeze=until:block1")[1].phases
    assert (phase.on_features, phase.feature_count) == (False, 6)


def test_no_features_where_none_are_wanted(weights: str) -> None:
    (phase,) = try_run(weights, "freeze=head", "train.cache=off")[1].phases
    assert (phase.on_features, phase.feature_count) == (False, 0)


def test_features_that_do_not_fit_are_refused_or_not_foretold(weights: str) -> None:
    small = (weights, "freeze=head", "train.cache_limit=1e-9")
    (phase,) = try_run(*small)[1].phases
    assert (phase.on_features, phase.feature_count) == (False, 0)
    with pytest.raises(ConfigError, match=r"cannot be used in phase probe: .* exceed"):
        try_run(*small, "train.cache=features")


@pytest.mark.parametrize("workers", [0, 2])
def test_times_are_those_of_the_whole_run(workers: int) -> None:
    found, forecast = try_run(f"data.workers={workers}", "train.accumulate=2", "train.epochs=3")
    (phase,) = forecast.phases
    assert 0 <= phase.waiting < 1
    assert phase.waiting > 0 or workers
    batches = -(-18 // found.plan.batch_size)
    assert phase.epoch_seconds == pytest.approx(batches * phase.step_seconds / 2)
    epoch = phase.epoch_seconds + phase.validation_seconds
    assert forecast.seconds == pytest.approx(3 * epoch + forecast.final_seconds)
    assert forecast.waiting_seconds == pytest.approx(3 * phase.waiting * phase.epoch_seconds)


def test_test_split_takes_its_time() -> None:
    draw_labelled(Path("images/test"), {"ant": 4, "cow": 4})
    without = try_run()[1]
    # 6 validation images, and 18 training images as examples of what is familiar.
    assert without.final_seconds == pytest.approx(4 * without.phases[-1].validation_seconds)
    forecast = try_run("data.test=images/test")[1]
    assert forecast.final_seconds > 4 * forecast.phases[-1].validation_seconds


def test_memory_is_that_of_the_parts(weights: str) -> None:
    found, forecast = try_run(weights, "freeze=lp-ft", "train.ema=0.9")
    parameters = list(found.plan.classifier.named_parameters())
    total = sum(each.nbytes for _, each in parameters)
    head = sum(each.nbytes for name, each in parameters if name.startswith("head"))
    probe, finetune = (phase.memory for phase in forecast.phases)
    assert (probe.gradients, probe.optimizer) == (head, 2 * head)
    assert (finetune.gradients, finetune.optimizer) == (total, 2 * total)
    assert finetune.model == probe.model >= 2 * total
    assert finetune.activations > 10 * probe.activations > 0
    assert finetune.peak is None or finetune.peak > 50_000_000  # torch alone


def test_saved_activations_are_what_backward_needs() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5))
    images = torch.randn(8, 10)
    with saved_activations(layers) as total:
        layers(images).sum().backward()
    # The input, and the output of the ReLU, which it and the next layer share.
    assert total == [8 * 10 * 4 + 8 * 20 * 4]


def test_peak_memory_counts_from_when_it_was_made() -> None:
    first = PeakMemory(torch.device("cpu"))
    if first.read() is None:
        pytest.skip("this system does not tell the peak of a part of a process")
    block = torch.ones(30_000_000, dtype=torch.uint8)
    high = first.read()
    del block
    assert high is not None
    assert high > 30_000_000


def test_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_: compiled.append(1))
    found, forecast = try_run("train.compile=true")
    stream = io.StringIO()
    show_forecast(found, forecast, Console(stream=stream))
    assert "time: measured without train.compile" in stream.getvalue()
    assert not compiled


def test_disk_needs_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}
    monkeypatch.setattr(
        "vtrain.runs.saved_state.require_disk_space", lambda run_dir, **sizes: asked.update(sizes)
    )
    forecast = try_run()[1]
    run()
    checkpoint, model = asked["checkpoint_bytes"], asked["model_bytes"]
    assert forecast.disk_needed == 3 * checkpoint + 2 * model
    assert forecast.disk_kept == checkpoint + model
    written = sum(Path("runs/tiny-001", name).stat().st_size for name in KEPT)
    assert forecast.disk_kept == pytest.approx(written, rel=0.3)


KEPT = ("last.ckpt", "model.safetensors")


# --- refused and stopped -------------------------------------------------------------------------


def test_run_that_would_be_refused_is_refused() -> None:
    run("run_dir=runs/mine", "train.epochs=1")
    with pytest.raises(UsageError, match="runs/mine exists already"):
        try_run("run_dir=runs/mine")


def test_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found, forecast = try_run("run_dir=deep/down/run")
    require_room(forecast, found.run_dir)
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("vtrain.system.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="the checkpoints of this run need") as caught:
        require_room(forecast, found.run_dir)
    assert caught.value.exit_code == ExitCode.RESOURCE


def test_ctrl_c_while_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_epoch", interrupt)
    with pytest.raises(InterruptedRunError, match="stopped: nothing was written") as caught:
        try_run()
    assert caught.value.exit_code == ExitCode.INTERRUPTED
    assert not Path("runs").exists()


# --- what is shown -------------------------------------------------------------------------------


def test_everything_is_shown(weights: str) -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    found, forecast = dry_run(
        load(weights, "freeze=lp-ft", "train.accumulate=2"),
        reporter=console,
        on_plan=lambda each: show_outline(each, console),
    )
    show_forecast(found, forecast, console)
    text = stream.getvalue()
    for part in (
        "18 train, 6 val images of 3 classes",
        "class  train  val",
        "augmentation of phase probe: none\n",
        "augmentation of phase finetune: light, random crop of 50% to 100% of the area",
        "phase probe, 1 epoch: trains",
        "phase finetune, 1 epoch: trains",
        "steps: 3 an epoch, 6 in 2 epochs; 4 images in a batch, 2 batches to a step, 2 in the last",
        "o head   x backbone",
        "phase probe: its epochs train on stored features: 24 are computed once, in ",
        "time, estimated from one step of each phase\n",
        "time: about ",
        "probe 1 epoch ",
        "gradients",
        "disk: ",
        "would write: runs/tiny-001, its model to runs/tiny-001/model.safetensors",
        "nothing has been written",
    ):
        assert part in text, part
    assert "\x1b" not in text
    assert text.isascii()


def test_of_many_classes_the_largest_and_smallest_are_shown() -> None:
    draw_labelled(Path("many"), {f"class{index:02}": 1 + (index * 7) % 3 for index in range(23)})
    shutil.copytree("many", "copies")
    plan = build_plan(load("data.train=many", "data.val=copies"), Console(quiet=True))
    stream = io.StringIO()
    show_classes(plan, Console(stream=stream))
    title, header, *rows = stream.getvalue().splitlines()
    assert title.startswith("23 classes, the 10 with the most training images and the 10 with")
    assert header.split() == ["class", "train", "val"]
    counts = [int(row.split()[1]) for row in rows]
    assert len(counts) == 20
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (3, 1)


def test_record_is_plain_and_complete(weights: str) -> None:
    found, forecast = try_run(weights, "freeze=lp-ft")
    record = build_dry_run_record(found, forecast)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["schema"] == 1
    assert record["classes"][0] == {"class": "ant", "train": 6, "val": 2}
    assert record["run_dir"] == "runs/tiny-001"
    assert record["learning_rate"]["backbone"][0] is None
    assert record["forecast"]["phases"][0]["feature_count"] == 24
    assert record["forecast"]["seconds"] == forecast.seconds
    assert [phase["name"] for phase in record["phases"]] == ["probe", "finetune"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "<1 s"),
        (1.0, "1 s"),
        (8.34, "8.3 s"),
        (43.2, "43 s"),
        (59.6, "1 min"),
        (150, "2.5 min"),
        (660, "11 min"),
        (3590, "1 h"),
        (5400, "1.5 h"),
        (180_000, "50 h"),
    ],
)
def test_format_rough(seconds: float, expected: str) -> None:
    assert format_rough(seconds) == expected


def test_format_step() -> None:
    assert [format_step(each) for each in (0.00042, 0.0853, 1.31)] == ["0.42 ms", "85 ms", "1.3 s"]
