"""What finished runs make of the same images: who is better, by how much, and how sure that is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vtrain.config.run_files import MODEL_NAME
from vtrain.errors import DataError, ModelError, UsageError
from vtrain.inference.statistics import (
    Interval,
    PairedDifference,
    bootstrap_confusion,
    holm,
    macro_f1,
    mcnemar,
    paired_bootstrap,
    paired_bootstrap_macro_f1,
    smallest_visible_difference,
)
from vtrain.runs.evaluation_files import ImagePrediction, predictions_path, read_predictions
from vtrain.runs.folder import RESOLVED_NAME
from vtrain.runs.record import RunRecord, read_run
from vtrain.system.text import one_line

Split = Literal["val", "test"]
Verdict = Literal["better", "worse", "unclear"]
SPLIT_NAMES = {"val": "validation", "test": "test"}
LEVEL = 0.95
SCHEMA = 1
NAMED_AT_MOST = 3  # images or classes that a message names
NOT_COMPARED = ("run_dir",)  # differs between any two runs


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run on the common images; `left_out` more have a prediction, but not in all runs.

    `seconds` is how long training took, `model_bytes` the size of the model file; None where the
    run folder does not tell.
    """

    run_dir: Path
    top1: float
    top1_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    left_out: int
    best_epoch: int | None
    epochs: int
    seconds: float | None
    model_bytes: int | None
    curve: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image that one of two runs has right."""

    path: Path
    label: str
    baseline: ImagePrediction
    other: ImagePrediction


@dataclass(frozen=True, slots=True)
class ClassChange:
    """Images of a class that the baseline and the other run have right.

    `gained` are right in the other run only, `lost` in the baseline only.
    """

    name: str
    count: int
    baseline: int
    other: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class RunDifference:
    """What a run has more than the baseline, on the same images.

    `p` is McNemar's, `p_corrected` that after Holm's correction for the number of runs, on which
    the verdict rests. The images of `gained` and `lost` come by how sure the wrong answer was.
    """

    run_dir: Path
    top1: PairedDifference
    macro_f1: PairedDifference
    p: float
    p_corrected: float
    verdict: Verdict
    gained: tuple[Disagreement, ...]
    lost: tuple[Disagreement, ...]
    classes: tuple[ClassChange, ...]


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A key of the config and its value in each run; None where the config is not known."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs on their `count` common images of a split; the first run is the baseline.

    `warnings` are reasons not to take the comparison at face value, `notes` how to read it.
    """

    split: Split
    count: int
    runs: tuple[ComparedRun, ...]
    differences: tuple[RunDifference, ...]
    settings: tuple[SettingDifference, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> ComparedRun:
        """What the others are compared with."""
        return self.runs[0]


def compare(run_dirs: Sequence[Path], *, split: Split = "val") -> Comparison:
    """Compare runs by their predictions for the images of a split that all of them have.

    Raises:
        UsageError: fewer than two runs, a run twice, or a path that is no run.
        ModelError: a run has no predictions for the split, or they are damaged.
        DataError: the runs have no image in common, or differ about an image's label.
    """
    _require_different(run_dirs)
    records = [read_run(run_dir) for run_dir in run_dirs]
    tables = [_read_table(record, split) for record in records]
    keyed = _match(records, tables, split)
    common = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    _require_common(records, common, split)
    rows = [[each[key] for key in common] for each in keyed]
    _require_same_labels(records, rows)
    left_out = [len(table) - len(common) for table in tables]
    answers = _Answers.build(records, rows)
    runs = tuple(
        _summarize(record, answers, index, left_out[index]) for index, record in enumerate(records)
    )
    differences = _compare_all(records, rows, answers)
    return Comparison(
        split=split,
        count=len(common),
        runs=runs,
        differences=differences,
        settings=find_setting_differences(records),
        warnings=tuple(_find_warnings(records, runs, split)),
        notes=tuple(_find_notes(runs, differences, len(common), split)),
    )


def _require_different(run_dirs: Sequence[Path]) -> None:
    if len(run_dirs) < 2:
        raise UsageError(
            "one run alone cannot be compared", "name two or more: vtrain compare RUN RUN"
        )
    seen: dict[Path, Path] = {}
    for run_dir in run_dirs:
        place = run_dir.resolve()
        if place in seen:
            other = "" if seen[place] == run_dir else f", the other time as {seen[place]}"
            raise UsageError(f"{run_dir} was given twice{other}", "name each run once")
        seen[place] = run_dir


# --- images that all runs have -------------------------------------------------------------------


def _read_table(record: RunRecord, split: Split) -> list[ImagePrediction]:
    path = predictions_path(record.run_dir, split)
    if not path.exists():
        if split == "test" and not _split_facts(record, "test"):
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


def _split_facts(record: RunRecord, split: str) -> dict[str, Any]:
    """What `data.json` says of a split; `{}` where it says nothing."""
    facts = record.data.get(split)
    return facts if isinstance(facts, dict) else {}


def _match(
    records: Sequence[RunRecord], tables: Sequence[Sequence[ImagePrediction]], split: Split
) -> list[dict[str, ImagePrediction]]:
    """Each run's predictions by what is the same in all runs for the same image.

    That is the path as the runs have it; where they name the folder differently, its place below
    the folder if the folders hold the same images, or else its absolute path.
    """
    facts = [_split_facts(record, split) for record in records]
    roots = [str(each.get("root", "")) for each in facts]
    digests = {each.get("sha256") for each in facts}
    as_written = len(set(roots)) == 1 or "" in roots
    keyed = []
    for root, table in zip(roots, tables, strict=True):
        if as_written:
            base, place = None, ""
        else:
            base = Path(root)
            place = "" if len(digests) == 1 else str(base.resolve())
        # The first one, should an image be listed twice.
        keyed.append({_key(row.path, base, place): row for row in reversed(table)})
    return [dict(reversed(each.items())) for each in keyed]


def _key(path: Path, base: Path | None, place: str) -> str:
    if base is None or not path.is_relative_to(base):
        return str(path)
    return f"{place}/{path.relative_to(base)}"


def _require_common(records: Sequence[RunRecord], common: Sequence[str], split: Split) -> None:
    if common:
        return
    lines = []
    for record in records:
        facts = _split_facts(record, split)
        root = one_line(facts.get("root", "an unknown folder"))
        lines.append(f"  {one_line(record.run_dir)}: {facts.get('count', 'its')} images in {root}")
    raise DataError(
        f"no {SPLIT_NAMES[split]} image is in all {len(records)} runs:\n" + "\n".join(lines),
        "only answers for the same images can be compared: train with the same data."
        f"{split}, or compare what vtrain evaluate FOLDER -m RUN says of one folder",
    )


def _require_same_labels(
    records: Sequence[RunRecord], rows: Sequence[Sequence[ImagePrediction]]
) -> None:
    for record, other in zip(records[1:], rows[1:], strict=True):
        pairs = zip(rows[0], other, strict=True)
        wrong = [(a, b) for a, b in pairs if a.label != b.label]
        if wrong:
            a, b = wrong[0]
            raise DataError(
                f"{len(wrong)} of {len(other)} common images have another label in "
                f"{record.run_dir} than in {records[0].run_dir}, the first is "
                f"{one_line(a.path)}: {a.label!r} and {b.label!r}",
                "both must be measured by the same labels: train again with one of the folders",
            )


# --- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answers:
    """Answers of all runs as numbers: classes are `names`, in the baseline's order first."""

    names: tuple[str, ...]
    labels: NDArray[np.int64]  # [N]
    predictions: tuple[NDArray[np.int64], ...]  # [N] for each run
    correct: tuple[NDArray[np.bool_], ...]  # [N] for each run

    @classmethod
    def build(
        cls, records: Sequence[RunRecord], rows: Sequence[Sequence[ImagePrediction]]
    ) -> "_Answers":
        """Number the classes of all runs by their names."""
        listed = [str(name) for record in records for name in record.classes]
        met = sorted({row.prediction for each in rows for row in each} | {x.label for x in rows[0]})
        names = tuple(dict.fromkeys([*listed, *met]))
        numbers = {name: number for number, name in enumerate(names)}
        return cls(
            names,
            np.array([numbers[row.label] for row in rows[0]]),
            tuple(np.array([numbers[row.prediction] for row in each]) for each in rows),
            tuple(np.array([row.correct for row in each]) for each in rows),
        )

    def confusion(self, index: int) -> NDArray[np.int64]:
        """Confusion matrix of one run, without the classes that do not occur."""
        met, places = np.unique(
            np.concatenate([self.labels, self.predictions[index]]), return_inverse=True
        )
        labels, predictions = np.split(places.reshape(-1), 2)
        cells = np.bincount(labels * len(met) + predictions, minlength=len(met) ** 2)
        return cells.reshape(len(met), len(met)).astype(np.int64)


def _summarize(record: RunRecord, answers: _Answers, index: int, left_out: int) -> ComparedRun:
    matrix = answers.confusion(index)
    intervals = bootstrap_confusion(matrix, level=LEVEL)
    result, model = record.result, record.run_dir / MODEL_NAME
    return ComparedRun(
        run_dir=record.run_dir,
        top1=float(answers.correct[index].mean()),
        top1_interval=intervals.accuracy,
        macro_f1=macro_f1(matrix),
        macro_f1_interval=intervals.macro_f1,
        left_out=left_out,
        best_epoch=None if result is None else result.best_epoch,
        epochs=len(record.metrics),
        seconds=None if result is None else result.seconds,
        model_bytes=model.stat().st_size if model.is_file() else None,
        curve=tuple(row.val_top1 for row in record.metrics),
    )


def _compare_all(
    records: Sequence[RunRecord], rows: Sequence[Sequence[ImagePrediction]], answers: _Answers
) -> tuple[RunDifference, ...]:
    others = range(1, len(records))
    tests = [mcnemar(answers.correct[0], answers.correct[index]) for index in others]
    corrected = holm([p for _, _, p in tests])
    return tuple(
        _compare_two(records[index].run_dir, rows, answers, index, p, p_corrected)
        for index, (_, _, p), p_corrected in zip(others, tests, corrected, strict=True)
    )


def _compare_two(
    run_dir: Path,
    rows: Sequence[Sequence[ImagePrediction]],
    answers: _Answers,
    index: int,
    p: float,
    p_corrected: float,
) -> RunDifference:
    before, after = answers.correct[0], answers.correct[index]
    top1 = paired_bootstrap(before, after, level=LEVEL)
    verdict: Verdict = "unclear"
    if p_corrected < 1 - LEVEL:
        verdict = "better" if top1.difference > 0 else "worse"
    return RunDifference(
        run_dir=run_dir,
        top1=top1,
        macro_f1=paired_bootstrap_macro_f1(
            answers.labels, answers.predictions[0], answers.predictions[index], level=LEVEL
        ),
        p=p,
        p_corrected=p_corrected,
        verdict=verdict,
        gained=_list_images(rows[0], rows[index], after & ~before),
        lost=_list_images(rows[0], rows[index], before & ~after),
        classes=_count_classes(answers, before, after),
    )


def _list_images(
    baseline: Sequence[ImagePrediction],
    other: Sequence[ImagePrediction],
    chosen: NDArray[np.bool_],
) -> tuple[Disagreement, ...]:
    images = [
        Disagreement(baseline[i].path, baseline[i].label, baseline[i], other[i])
        for i in np.flatnonzero(chosen).tolist()
    ]

    def sureness(each: Disagreement) -> float:
        return each.baseline.probability if each.other.correct else each.other.probability

    return tuple(sorted(images, key=lambda each: -sureness(each)))


def _count_classes(
    answers: _Answers, before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> tuple[ClassChange, ...]:
    """Classes with images, the largest gain first and the largest loss last."""
    size = len(answers.names)

    def count(chosen: NDArray[np.bool_]) -> list[int]:
        found: list[int] = np.bincount(answers.labels[chosen], minlength=size).tolist()
        return found

    columns = [np.ones_like(before), before, after, after & ~before, before & ~after]
    changes = [
        ClassChange(name, *counts)
        for name, *counts in zip(answers.names, *map(count, columns), strict=True)
        if counts[0]
    ]
    return tuple(sorted(changes, key=lambda each: (each.lost - each.gained, each.name)))


# --- what else differs ---------------------------------------------------------------------------


def find_setting_differences(records: Sequence[RunRecord]) -> tuple[SettingDifference, ...]:
    """Keys of the config that are not the same in all runs, in the order of the config."""
    known = [record.flat_config() for record in records]
    keys = dict.fromkeys(key for each in known for key in each if key not in NOT_COMPARED)
    found = []
    for key in keys:
        values = tuple(each.get(key) for each in known)
        present = [value for value, each in zip(values, known, strict=True) if each]
        if any(value != present[0] for value in present):
            found.append(SettingDifference(key, values))
    return tuple(found)


def _find_warnings(
    records: Sequence[RunRecord], runs: Sequence[ComparedRun], split: Split
) -> Iterator[str]:
    if any(run.left_out for run in runs):
        parts = ", ".join(f"{run.left_out:,} of {run.run_dir}" for run in runs if run.left_out)
        yield f"left out, because not all runs have them: {parts} ({SPLIT_NAMES[split]} images)"
    yield from _compare_data(records)
    yield from _compare_classes(records)
    for record in records:
        if record.result is None:
            yield f"{record.run_dir} has not finished: its predictions may be of an earlier state"
        for problem in record.problems:
            if not problem.startswith("plan.json"):
                yield f"{record.run_dir}: {problem}"


def _compare_data(records: Sequence[RunRecord]) -> Iterator[str]:
    for split in ("train", "val"):
        facts = [_split_facts(record, split) for record in records]
        if len({each["sha256"] for each in facts if "sha256" in each}) > 1:
            parts = "; ".join(
                f"{record.run_dir}: {each.get('count', '?')} images in {each.get('root', '?')}"
                for record, each in zip(records, facts, strict=True)
            )
            what = (
                "trained on different images"
                if split == "train"
                else ("epochs were chosen by different validation images")
            )
            yield f"{what} ({parts})"


def _compare_classes(records: Sequence[RunRecord]) -> Iterator[str]:
    first = set(records[0].classes)
    for record in records[1:]:
        own = set(record.classes)
        for run_dir, more in ((record.run_dir, own - first), (records[0].run_dir, first - own)):
            if more and own and first:
                names = sorted(map(str, more))
                shown = ", ".join(one_line(name) for name in names[:NAMED_AT_MOST])
                rest = len(names) - NAMED_AT_MOST
                other = records[0].run_dir if run_dir is record.run_dir else record.run_dir
                yield (
                    f"{run_dir} knows classes that {other} does not: {shown}"
                    f"{f' and {rest} more' if rest > 0 else ''}"
                )


def _find_notes(
    runs: Sequence[ComparedRun],
    differences: Sequence[RunDifference],
    count: int,
    split: Split,
) -> Iterator[str]:
    if any(each.verdict == "unclear" for each in differences):
        visible = smallest_visible_difference(count, runs[0].top1, level=LEVEL)
        points = f"{100 * visible:.{0 if visible >= 0.015 else 1}f}"
        yield (
            f"{count:,} images tell differences from about {points} points on; more images show "
            "smaller ones"
        )
    if len(differences) > 1:
        yield (
            f"p is corrected for {len(differences)} comparisons with {runs[0].run_dir} (Holm); the "
            "others are not compared with one another"
        )
    if split == "val" and all(predictions_path(run.run_dir, "test").exists() for run in runs):
        yield "the validation images also chose each run's epoch: --split test is the fairer judge"


# --- in words and as JSON ------------------------------------------------------------------------


def describe_difference(difference: RunDifference, comparison: Comparison) -> str:
    """The verdict in a sentence."""
    run, baseline = difference.run_dir, comparison.baseline.run_dir
    disagreements = len(difference.gained) + len(difference.lost)
    facts = _describe_facts(difference, len(comparison.differences))
    if difference.verdict != "unclear":
        return f"{run} is {difference.verdict} than {baseline}: {facts}"
    start = f"No difference between {run} and {baseline} can be shown"
    if not disagreements:
        return f"{start}: both are right on the same images"
    needed = 1
    while len(comparison.differences) * 2.0 ** (1 - needed) >= 1 - LEVEL:
        needed += 1
    if disagreements < needed:
        images = "1 image" if disagreements == 1 else f"{disagreements} images"
        facts += f"; only one is right on {images}, and it takes at least {needed} to show one"
    return f"{start}: {facts}"


def _describe_facts(difference: RunDifference, comparisons: int) -> str:
    top1, p = difference.top1, difference.p_corrected
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"
    corrected = " (corrected)" if comparisons > 1 else ""
    return (
        f"{format_points(top1.difference)} points of top-1, {100 * LEVEL:.0f} % interval "
        f"{format_points(top1.low)} to {format_points(top1.high)}, {shown}{corrected}"
    )


def format_points(difference: float) -> str:
    """A difference of shares in points of percent, with its sign: +3.5, -0.4, 0.0."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The object that `vtrain compare --json` prints."""
    return {
        "schema": SCHEMA,
        "split": comparison.split,
        "count": comparison.count,
        "level": LEVEL,
        "baseline": str(comparison.baseline.run_dir),
        "runs": [_run_json(run) for run in comparison.runs],
        "differences": [_difference_json(each, comparison) for each in comparison.differences],
        "settings": [
            {
                "key": each.key,
                "values": {
                    str(run.run_dir): value
                    for run, value in zip(comparison.runs, each.values, strict=True)
                },
            }
            for each in comparison.settings
        ],
        "warnings": list(comparison.warnings),
        "notes": list(comparison.notes),
    }


def _run_json(run: ComparedRun) -> dict[str, Any]:
    return {
        "run": str(run.run_dir),
        "top1": run.top1,
        "top1_interval": list(run.top1_interval),
        "macro_f1": run.macro_f1,
        "macro_f1_interval": list(run.macro_f1_interval),
        "left_out": run.left_out,
        "best_epoch": run.best_epoch,
        "epochs": run.epochs,
        "seconds": run.seconds,
        "model_bytes": run.model_bytes,
        "val_top1_by_epoch": list(run.curve),
    }


def _difference_json(difference: RunDifference, comparison: Comparison) -> dict[str, Any]:
    def plain(each: PairedDifference) -> dict[str, Any]:
        return {"difference": each.difference, "interval": [each.low, each.high]}

    def images(chosen: Sequence[Disagreement]) -> list[dict[str, Any]]:
        return [
            {
                "path": str(each.path),
                "label": each.label,
                "baseline": {
                    "class": each.baseline.prediction, "probability": each.baseline.probability
                },
                "run": {"class": each.other.prediction, "probability": each.other.probability},
            }
            for each in chosen
        ]  # fmt: skip

    return {
        "run": str(difference.run_dir),
        "verdict": difference.verdict,
        "text": describe_difference(difference, comparison),
        "top1": plain(difference.top1),
        "macro_f1": plain(difference.macro_f1),
        "p": difference.p,
        "p_corrected": difference.p_corrected,
        "right_in_run_only": images(difference.gained),
        "right_in_baseline_only": images(difference.lost),
        "per_class": [
            {
                "class": each.name,
                "count": each.count,
                "right_in_baseline": each.baseline,
                "right_in_run": each.other,
                "gained": each.gained,
                "lost": each.lost,
            }
            for each in difference.classes
        ],
    }
