"""Metrics as files and as TensorBoard scalars."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vtrain.errors import UsageError
from vtrain.runs.metric_log import EpochMetrics, TensorBoardLog, write_metrics

COLUMNS = [
    "phase",
    "epoch",
    "step",
    "lr",
    "train_loss",
    "val_loss",
    "val_top1",
    "val_macro_f1",
    "images_per_second",
    "data_wait",
    "seconds",
]


def row(epoch: int, **changes: Any) -> EpochMetrics:
    values: dict[str, Any] = {
        "phase": "probe",
        "epoch": epoch,
        "step": 5 * epoch,
        "lr": 1e-3 / epoch,
        "train_loss": 1.5 / epoch,
        "val_loss": 1.25 / epoch,
        "val_top1": 0.5,
        "val_macro_f1": 1 / 3,
        "images_per_second": 123.456,
        "data_wait": 0.25,
        "seconds": 2.5,
    }
    return EpochMetrics(**{**values, **changes})


def test_both_files_hold_every_epoch_exactly(tmp_path: Path) -> None:
    history = [asdict(row(epoch)) for epoch in (1, 2, 3)]
    write_metrics(tmp_path, history)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert list(json.loads(lines[0])) == COLUMNS
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [list(each) for each in rows] == [COLUMNS] * 3
    assert [float(each["val_macro_f1"]) for each in rows] == [1 / 3] * 3
    assert [int(each["epoch"]) for each in rows] == [1, 2, 3]


def test_files_are_replaced_not_appended_to(tmp_path: Path) -> None:
    write_metrics(tmp_path, [asdict(row(epoch)) for epoch in (1, 2, 3)])
    write_metrics(tmp_path, [asdict(row(1))])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def test_run_without_epochs_has_a_header(tmp_path: Path) -> None:
    write_metrics(tmp_path, [])
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "metrics.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_what_else_a_history_holds_is_not_written(tmp_path: Path) -> None:
    write_metrics(tmp_path, [{**asdict(row(1)), "secret": 1}])
    assert "secret" not in (tmp_path / "metrics.jsonl").read_text()


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder)).Reload()
    return {
        tag: [(each.step, each.value) for each in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def write_log(run_dir: Path, rows: list[EpochMetrics], *, purge_step: int) -> None:
    pytest.importorskip("tensorboard", reason="the tensorboard extra is not installed")
    log = TensorBoardLog(run_dir, purge_step=purge_step)
    for each in rows:
        log.write(each)
    log.close()


def test_tensorboard_holds_every_number_by_epoch(tmp_path: Path) -> None:
    write_log(tmp_path, [row(1), row(2)], purge_step=1)
    scalars = read_scalars(tmp_path / "tensorboard")
    assert set(scalars) == set(COLUMNS) - {"phase", "epoch"}
    assert scalars["val_loss"] == [(1, 1.25), (2, 0.625)]
    assert scalars["step"] == [(1, 5.0), (2, 10.0)]


def test_resumed_tensorboard_log_holds_each_epoch_once(tmp_path: Path) -> None:
    write_log(tmp_path, [row(1), row(2), row(3)], purge_step=1)
    write_log(tmp_path, [row(3, val_loss=0.5), row(4)], purge_step=3)
    found = read_scalars(tmp_path / "tensorboard")["val_loss"]
    assert found == [(1, 1.25), (2, 0.625), (3, 0.5), (4, 0.3125)]


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="tensorboard is not installed") as caught:
        TensorBoardLog(tmp_path, purge_step=1)
    assert caught.value.hint == 'install it with: pip install "vtrain[tensorboard]"'
    assert not (tmp_path / "tensorboard").exists()
