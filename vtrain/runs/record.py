"""What a run folder says of its run, also of one that has not finished or lacks files."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtrain.config.load import FitConfig, flatten_config, read_settled_config
from vtrain.data.image_sets import EpochMetrics, FitResult, ImagePrediction
from vtrain.errors import ModelError, UsageError, VtrainError
from vtrain.runs.folder import RESOLVED_NAME, load_result
from vtrain.system.files import read_csv_cell

DATA_NAME = "data.json"
ENVIRONMENT_NAME = "env.json"
METRICS_NAME = "metrics.jsonl"
PLAN_NAME = "plan.json"
MAX_JSON_BYTES = 500_000_000
_NUMBERS = ("probability", "label_probability", "second_probability", "distance")


def evaluation_path(run_dir: Path, split: str) -> Path:
    """Where the metrics of a split stand: the object that `vtrain evaluate --json` prints."""
    return run_dir / f"evaluation-{split}.json"


def predictions_path(run_dir: Path, split: str) -> Path:
    """Where the answer for each image of a split stands."""
    return run_dir / f"predictions-{split}.csv"


def features_path(run_dir: Path, split: str) -> Path:
    """Where features of some images of a split stand: `features` `[M, D]` and `rows` `[M]`."""
    return run_dir / f"features-{split}.safetensors"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that is known of a run without its model and its images.

    `config` is None where it cannot be read (any more); `metrics` has one row per epoch; `data`,
    `plan` and `environment` are the content of `data.json`, `plan.json` and `env.json`, `{}` where
    missing; `evaluations` by split, as `vtrain evaluate --json`. `problems` names the files that
    are missing or damaged.
    """

    run_dir: Path
    config: FitConfig | None
    metrics: tuple[EpochMetrics, ...]
    data: dict[str, Any]
    plan: dict[str, Any]
    environment: dict[str, Any]
    result: FitResult | None
    evaluations: dict[str, dict[str, Any]]
    problems: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them."""
        names = self.data.get("classes")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    def flat_config(self) -> dict[str, Any]:
        """Dotted key → plain value; empty where the config is not known."""
        return {} if self.config is None else flatten_config(self.config)


def read_run(run_dir: Path) -> RunRecord:
    """Read what there is in a run folder.

    Raises:
        UsageError: it is no run folder.
    """
    if not run_dir.is_dir():
        raise UsageError(
            f"{run_dir} is no run folder: {'not a folder' if run_dir.exists() else 'not there'}",
            "name a folder that `vtrain fit` made, such as runs/flowers-001",
        )
    reader = _Reader(run_dir)
    record = RunRecord(
        run_dir=run_dir,
        config=reader.config(),
        metrics=reader.metrics(),
        data=reader.json(DATA_NAME),
        plan=reader.json(PLAN_NAME),
        environment=reader.json(ENVIRONMENT_NAME),
        result=load_result(run_dir),
        evaluations={
            split: reader.json(evaluation_path(run_dir, split).name)
            for split in ("val", "test")
            if evaluation_path(run_dir, split).exists()
        },
        problems=tuple(reader.problems),
    )
    if record.config is None and not record.metrics and not record.data:
        raise UsageError(
            f"{run_dir} is no run folder: it holds none of {RESOLVED_NAME}, {METRICS_NAME}, "
            f"{DATA_NAME}",
            "name a folder that `vtrain fit` made, such as runs/flowers-001",
        )
    return record


@dataclass(slots=True)
class _Reader:
    run_dir: Path
    problems: list[str] = field(default_factory=list)

    def config(self) -> FitConfig | None:
        path = self.run_dir / RESOLVED_NAME
        if not path.exists():
            self.problems.append(f"{RESOLVED_NAME} is missing")
            return None
        try:
            return read_settled_config(path)  # its images may have moved since
        except VtrainError as error:
            self.problems.append(f"{RESOLVED_NAME} cannot be read: {error.message[:200]}")
            return None

    def json(self, name: str) -> dict[str, Any]:
        path = self.run_dir / name
        try:
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ValueError("it is too large")
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it holds no JSON object")
        except FileNotFoundError:
            self.problems.append(f"{name} is missing")
        except (OSError, ValueError, RecursionError) as error:
            self.problems.append(f"{name} cannot be read: {error!s:.200}")
        else:
            return content
        return {}

    def metrics(self) -> tuple[EpochMetrics, ...]:
        path = self.run_dir / METRICS_NAME
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = tuple(EpochMetrics(**json.loads(line)) for line in lines)
        except FileNotFoundError:
            self.problems.append(f"{METRICS_NAME} is missing")
            return ()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self.problems.append(f"{METRICS_NAME} cannot be read: {error!s:.200}")
            return ()
        return rows


def read_predictions(run_dir: Path, split: str) -> list[ImagePrediction]:
    """The rows of `predictions-<split>.csv`, in its order.

    Raises:
        ModelError: it is missing or damaged.
    """
    path = predictions_path(run_dir, split)
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return [_read_row(row) for row in csv.DictReader(stream, restval="")]
    except FileNotFoundError as error:
        raise ModelError(
            f"{run_dir} holds no {path.name}", "finish the run: vtrain fit CONFIG --resume"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ModelError(f"{path} is damaged: {error!s:.200}") from error


def _read_row(row: dict[str, str]) -> ImagePrediction:
    if row["correct"] not in ("0", "1"):  # such as a file that was cut off
        raise ValueError(
            f"of {row['path'][:80]!r} correct is {row['correct'][:20]!r}, expected 0 or 1"
        )
    numbers = {name: float(row[name]) if row.get(name) else math.nan for name in _NUMBERS}
    return ImagePrediction(
        path=Path(read_csv_cell(row["path"])),
        label=read_csv_cell(row["label"]),
        prediction=read_csv_cell(row["prediction"]),
        probability=numbers["probability"],
        correct=row["correct"] == "1",
        label_probability=numbers["label_probability"],
        second=read_csv_cell(row.get("second") or ""),
        second_probability=numbers["second_probability"],
        distance=numbers["distance"],
    )
