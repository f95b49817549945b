"""What a run folder says of its run, also of one that has not finished or lacks files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vtrain.config.input_paths import INPUT_PATHS, looks_like_path
from vtrain.config.keys import FitConfig, flatten_config
from vtrain.config.load import read_settled_config
from vtrain.config.run_files import RESOLVED_NAME
from vtrain.errors import UsageError, VtrainError
from vtrain.runs.evaluation_files import EvaluationResult, evaluation_path, read_evaluation
from vtrain.runs.folder import FitResult, find_input, load_result
from vtrain.runs.metric_log import METRICS_NAME, EpochMetrics, read_metrics
from vtrain.system.json_csv import read_json_object

T = TypeVar("T")

DATA_NAME = "data.json"
ENVIRONMENT_NAME = "env.json"
PLAN_NAME = "plan.json"
NAME_A_RUN_FOLDER = "name a folder that `vtrain fit` made, such as runs/flowers-001"


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that is known of a run without its model and its images.

    `config` is None where it cannot be read (any more); `metrics` has one row per epoch; `data`,
    `plan` and `environment` are the content of `data.json`, `plan.json` and `env.json`, `{}` where
    missing; `evaluations` by split. `problems` names the files that are missing or damaged.
    """

    run_dir: Path
    config: FitConfig | None
    metrics: tuple[EpochMetrics, ...]
    data: dict[str, Any]
    plan: dict[str, Any]
    environment: dict[str, Any]
    result: FitResult | None
    evaluations: dict[str, EvaluationResult]
    problems: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; labels index them."""
        names = self.data.get("classes")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    def flat_config(self) -> dict[str, Any]:
        """Dotted key → plain value; empty where the config is not known."""
        return {} if self.config is None else flatten_config(self.config)


def _read_config(path: Path) -> FitConfig:
    """The resolved config of a run, with its inputs where they are now."""
    config = read_settled_config(path)
    plain = config.model_dump(mode="json")
    for key in INPUT_PATHS:
        section, name = key.split(".")
        value = plain[section][name]
        if value is not None and (section == "data" or looks_like_path(value, Path())):
            plain[section][name] = str(find_input(path.parent, Path(value), config.run_dir))
    return FitConfig.model_validate(plain)


def read_run(run_dir: Path) -> RunRecord:
    """Read what there is in a run folder.

    Raises:
        UsageError: it is no run folder.
    """
    if not run_dir.is_dir():
        raise UsageError(
            f"{run_dir} is no run folder: {'not a folder' if run_dir.exists() else 'not there'}",
            NAME_A_RUN_FOLDER,
        )
    problems: list[str] = []

    def read(name: str, read_file: Callable[[Path], T], otherwise: T) -> T:
        if not (run_dir / name).exists():
            problems.append(f"{name} is missing")
            return otherwise
        try:
            return read_file(run_dir / name)
        except (OSError, ValueError, RecursionError, VtrainError) as error:
            problems.append(f"{name} cannot be read: {error!s:.200}")
            return otherwise

    record = RunRecord(
        run_dir=run_dir,
        config=read(RESOLVED_NAME, _read_config, None),  # its images may have moved since
        metrics=read(METRICS_NAME, read_metrics, ()),
        data=read(DATA_NAME, read_json_object, {}),
        plan=read(PLAN_NAME, read_json_object, {}),
        environment=read(ENVIRONMENT_NAME, read_json_object, {}),
        result=load_result(run_dir),
        evaluations={
            split: found
            for split in ("val", "test")
            if (path := evaluation_path(run_dir, split)).exists()
            and (found := read(path.name, read_evaluation, None))
        },
        problems=tuple(problems),
    )
    if record.config is None and not record.metrics and not record.data:
        raise UsageError(
            f"{run_dir} is no run folder: it holds none of {RESOLVED_NAME}, {METRICS_NAME}, "
            f"{DATA_NAME}",
            NAME_A_RUN_FOLDER,
        )
    return record
