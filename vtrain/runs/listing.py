"""The runs below a folder with what their files say of them; nothing heavy is imported."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vtrain.config.run_files import CHECKPOINT_NAME, MODEL_NAME, RESOLVED_NAME, RUNS
from vtrain.errors import UsageError
from vtrain.runs.folder import (
    LOCK_NAME,
    RESULT_NAME,
    is_running,
    load_result,
)
from vtrain.runs.metric_log import METRICS_NAME, EpochMetrics, find_best, read_metrics
from vtrain.system.json_csv import read_json_object
from vtrain.system.text import one_line

_DEPTH = 3  # folders below the one that is asked for
_MARKS = {CHECKPOINT_NAME, RESOLVED_NAME, RESULT_NAME, LOCK_NAME}


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run in a few figures, None where they are not known (yet).

    `state` is finished, running or stopped; `epochs` are done, `images` are those for training.
    Metrics are those of `best_epoch`. `changed` is when it got its last result or epoch;
    `problem` is what is wrong with its files.
    """

    name: str
    path: Path
    state: str
    backbone: str | None
    images: int | None
    classes: int | None
    epochs: int
    best_epoch: int | None
    val_top1: float | None
    val_macro_f1: float | None
    test_top1: float | None
    seconds: float | None
    changed: str
    problem: str | None


def list_runs(folder: Path | None) -> list[ListedRun]:
    """The runs below a folder (`runs/` where none is given), the newest first.

    Raises:
        UsageError: there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        kind = "not a folder" if folder.exists() else "not there"
        raise UsageError(f"{one_line(folder)} holds no runs: it is {kind}", "name a folder of runs")
    root = folder or RUNS
    found = [_describe(path, root) for path in _find_runs(root, _DEPTH)]
    return sorted(found, key=lambda each: (each.changed, each.name), reverse=True)


def _find_runs(folder: Path, depth: int) -> Iterator[Path]:
    """The run folders in `folder`, or itself; what is in a run is its own."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    if {each.name for each in entries} & _MARKS:
        yield folder
    elif depth:
        for each in entries:
            if each.is_dir():
                yield from _find_runs(folder / each.name, depth - 1)


def _describe(path: Path, root: Path) -> ListedRun:
    problems: list[str] = []
    rows: tuple[EpochMetrics, ...] = ()
    if (path / METRICS_NAME).exists():
        try:
            rows = read_metrics(path / METRICS_NAME)
        except (OSError, ValueError) as error:
            problems.append(f"{METRICS_NAME} cannot be read: {error!s:.100}")
    data, plan = (_read(path / name, problems) for name in ("data.json", "plan.json"))
    result = load_result(path)
    if result is None and (path / RESULT_NAME).exists():
        problems.append(f"{RESULT_NAME} cannot be read")
    if result is not None and not (path / MODEL_NAME).is_file():
        problems.append(f"{MODEL_NAME} is missing")
    best = find_best(rows)
    scores = result or best
    train, names = data.get("train"), data.get("classes")
    images = train.get("count") if isinstance(train, Mapping) else None
    backbone = plan.get("backbone")
    state = "running" if is_running(path) else "stopped" if result is None else "finished"
    return ListedRun(
        name=path.name if path == root else str(path.relative_to(root)),
        path=path,
        state=state,
        backbone=backbone if isinstance(backbone, str) else None,
        images=images if isinstance(images, int) else None,
        classes=len(names) if isinstance(names, list) else None,
        epochs=rows[-1].epoch if rows else 0,
        best_epoch=result.best_epoch if result else best.epoch if best else None,
        val_top1=scores.val_top1 if scores else None,
        val_macro_f1=scores.val_macro_f1 if scores else None,
        test_top1=result.test_top1 if result else None,
        seconds=result.seconds if result else None,
        changed=_find_time(path),
        problem="; ".join(map(one_line, problems)) or None,
    )


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}  # it was just starting
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error!s:.100}")
        return {}


def _find_time(path: Path) -> str:
    """When the run got its last result or epoch, or was started: the time here, in ISO 8601."""
    for name in (RESULT_NAME, METRICS_NAME, ""):
        try:
            changed = (path / name).stat().st_mtime
        except OSError:
            continue
        return datetime.fromtimestamp(changed).astimezone().isoformat(timespec="seconds")
    return ""
