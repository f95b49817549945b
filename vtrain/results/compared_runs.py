"""What `compare` reads of runs: their answers for the same images, and what else differs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from vtrain.config.run_files import RESOLVED_NAME
from vtrain.errors import DataError, ModelError, UsageError
from vtrain.runs.evaluation_files import ImagePrediction, predictions_path, read_predictions
from vtrain.runs.record import RunRecord, read_run
from vtrain.system.text import enumerate_names, one_line

Split = Literal["val", "test"]
SPLIT_NAMES = {"val": "validation", "test": "test"}
NOT_COMPARED = ("run_dir",)  # differs between any two runs


@dataclass(frozen=True, slots=True)
class RunAnswers:
    """A run's answers for the images that all runs have, in the same order for each run.

    It has answers for `left_out` more images.
    """

    record: RunRecord
    rows: tuple[ImagePrediction, ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A key of the config and its value in each run folder; None where the config is not known."""

    key: str
    values: Mapping[str, Any]


def read_answers(run_dirs: Sequence[Path], split: Split) -> list[RunAnswers]:
    """Read what runs make of the images of a split that all of them have.

    Raises:
        UsageError: fewer than two runs, a run twice, or a path that is no run.
        ModelError: a run has no predictions for the split, or they are damaged.
        DataError: the runs have no image in common, or differ about an image's label.
    """
    _require_different(run_dirs)
    records = [read_run(run_dir) for run_dir in run_dirs]
    tables = [_read_table(record, split) for record in records]
    keyed = _key_by_image(records, tables, split)
    common = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    if not common:
        lines = []
        for record in records:
            data = _split_data(record, split)
            root, count = one_line(data.get("root", "an unknown folder")), data.get("count", "its")
            lines.append(f"  {one_line(record.run_dir)}: {count} images in {root}")
        raise DataError(
            f"no {SPLIT_NAMES[split]} image is in all {len(records)} runs:\n" + "\n".join(lines),
            "only answers for the same images can be compared: train with the same data."
            f"{split}, or compare what vtrain evaluate FOLDER -m RUN says of one folder",
        )
    answers = [
        RunAnswers(record, tuple(each[key] for key in common), len(table) - len(common))
        for record, table, each in zip(records, tables, keyed, strict=True)
    ]
    for each in answers[1:]:
        _require_same_labels(answers[0], each)
    return answers


def _require_different(run_dirs: Sequence[Path]) -> None:
    if len(run_dirs) < 2:
        raise UsageError(
            "one run alone cannot be compared", "name two or more: vtrain compare RUN RUN"
        )
    for before, run_dir in combinations(run_dirs, 2):
        if before.resolve() == run_dir.resolve():
            other = "" if before == run_dir else f", the other time as {before}"
            raise UsageError(f"{run_dir} was given twice{other}", "name each run once")


def _read_table(record: RunRecord, split: Split) -> list[ImagePrediction]:
    path = predictions_path(record.run_dir, split)
    if not path.exists():
        if split == "test" and not _split_data(record, "test"):
            raise ModelError(
                f"{record.run_dir} holds no {path.name}: it was trained without a test split",
                "compare on the validation images: leave --split test out",
            )
        raise ModelError(
            f"{record.run_dir} holds no {path.name}: the run has not finished",
            "wait until it has, or go on with it: vtrain fit "
            f"{quote(str(record.run_dir / RESOLVED_NAME))} {quote(f'run_dir={record.run_dir}')} "
            "--resume",
        )
    table = read_predictions(record.run_dir, split)
    if not table:
        raise ModelError(f"{path} holds no predictions", "evaluate or train the run again")
    return table


def _split_data(record: RunRecord, split: str) -> dict[str, Any]:
    """What `data.json` says of a split; `{}` where it says nothing."""
    found = record.data.get(split)
    return found if isinstance(found, dict) else {}


def _key_by_image(
    records: Sequence[RunRecord], tables: Sequence[Sequence[ImagePrediction]], split: Split
) -> list[dict[str, ImagePrediction]]:
    """Each run's predictions by what is the same in all runs for the same image.

    That is the path as the runs have it; where they name the folder differently, its place below
    the folder if the folders hold the same images, or else its absolute path.
    """
    data = [_split_data(record, split) for record in records]
    roots = [str(each.get("root", "")) for each in data]
    as_written = len(set(roots)) == 1 or "" in roots
    same_images = len({each.get("sha256") for each in data}) == 1
    keyed = []
    for root, table in zip(roots, tables, strict=True):
        folder = "" if same_images else str(Path(root).resolve())
        found: dict[str, ImagePrediction] = {}
        for row in table:
            below = not as_written and row.path.is_relative_to(root)
            key = f"{folder}/{row.path.relative_to(root)}" if below else str(row.path)
            found.setdefault(key, row)  # the first one, should an image be listed twice
        keyed.append(found)
    return keyed


def _require_same_labels(baseline: RunAnswers, other: RunAnswers) -> None:
    pairs = zip(baseline.rows, other.rows, strict=True)
    wrong = [(a, b) for a, b in pairs if a.label != b.label]
    if wrong:
        a, b = wrong[0]
        raise DataError(
            f"{len(wrong)} of {len(other.rows)} common images have another label in "
            f"{other.record.run_dir} than in {baseline.record.run_dir}, the first is "
            f"{one_line(a.path)}: {a.label!r} and {b.label!r}",
            "both must be measured by the same labels: train again with one of the folders",
        )


# --- what else differs ---------------------------------------------------------------------------


def find_setting_differences(records: Sequence[RunRecord]) -> tuple[SettingDifference, ...]:
    """Keys of the config that are not the same in all runs, in the order of the config."""
    configs = {str(record.run_dir): record.flat_config() for record in records}
    keys = dict.fromkeys(key for each in configs.values() for key in each)
    found = []
    for key in keys:
        present = [each.get(key) for each in configs.values() if each]
        if key not in NOT_COMPARED and any(value != present[0] for value in present):
            values = {run: each.get(key) for run, each in configs.items()}
            found.append(SettingDifference(key, values))
    return tuple(found)


def find_warnings(answers: Sequence[RunAnswers], split: Split) -> Iterator[str]:
    """Reasons not to take a comparison at face value."""
    records = [each.record for each in answers]
    if any(each.left_out for each in answers):
        parts = ", ".join(
            f"{each.left_out:,} of {each.record.run_dir}" for each in answers if each.left_out
        )
        yield f"left out, because not all runs have them: {parts} ({SPLIT_NAMES[split]} images)"
    yield from _compare_data(records)
    for record in records[1:]:
        for one, other in ((record, records[0]), (records[0], record)):
            if other.classes and (more := sorted(set(one.classes) - set(other.classes))):
                yield (
                    f"{one.run_dir} knows classes that {other.run_dir} does not: "
                    f"{enumerate_names(more)}"
                )
    for record in records:
        if record.result is None:
            yield f"{record.run_dir} has not finished: its predictions may be of an earlier state"
        for problem in record.problems:
            if not problem.startswith("plan.json"):
                yield f"{record.run_dir}: {problem}"


def _compare_data(records: Sequence[RunRecord]) -> Iterator[str]:
    for split, what in (
        ("train", "trained on different images"),
        ("val", "epochs were chosen by different validation images"),
    ):
        data = [_split_data(record, split) for record in records]
        if len({each["sha256"] for each in data if "sha256" in each}) > 1:
            parts = "; ".join(
                f"{record.run_dir}: {each.get('count', '?')} images in {each.get('root', '?')}"
                for record, each in zip(records, data, strict=True)
            )
            yield f"{what} ({parts})"
