"""What a run folder says of its run, also of one that has not finished or lacks files."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtrain.config.keys import FitConfig, flatten_config
from vtrain.config.load import read_settled_config
from vtrain.errors import UsageError, VtrainError
from vtrain.runs.evaluation_files import evaluation_path
from vtrain.runs.folder import RESOLVED_NAME, FitResult, load_result
from vtrain.runs.metric_log import EpochMetrics

DATA_NAME = "data.json"
ENVIRONMENT_NAME = "env.json"
METRICS_NAME = "metrics.jsonl"
PLAN_NAME = "plan.json"
MAX_JSON_BYTES = 500_000_000


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
