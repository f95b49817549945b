"""What finished runs make of the same images: who is better, by how much, and how sure that is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vtrain.config.run_files import MODEL_NAME
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
from vtrain.results.compared_runs import (
    RunAnswers,
    SettingDifference,
    Split,
    find_setting_differences,
    find_warnings,
    read_answers,
)
from vtrain.runs.evaluation_files import predictions_path

Verdict = Literal["better", "worse", "unclear"]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One run on the common images; `left_out` more have a prediction, but not in all runs.

    `seconds` is how long training took, `model_bytes` the size of the model file; None where the
    run folder does not tell.
    """

    run: Path
    top1: float
    top1_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    left_out: int
    best_epoch: int | None
    epochs: int
    seconds: float | None
    model_bytes: int | None
    val_top1_by_epoch: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a run takes an image for."""

    class_: str
    probability: float


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An image that either the baseline or the other run has right."""

    path: Path
    label: str
    baseline: Answer
    run: Answer

    @property
    def right(self) -> Answer:
        """The answer that is the label."""
        return self.baseline if self.baseline.class_ == self.label else self.run

    @property
    def wrong(self) -> Answer:
        """The other one."""
        return self.run if self.right is self.baseline else self.baseline


@dataclass(frozen=True, slots=True)
class ClassChange:
    """Images of a class that the baseline and the other run have right.

    `gained` are right in the other run only, `lost` in the baseline only.
    """

    class_: str
    count: int
    right_in_baseline: int
    right_in_run: int
    gained: int
    lost: int


@dataclass(frozen=True, slots=True)
class RunDifference:
    """What a run has more than the baseline, on the same images; `text` is that in a sentence.

    `p` is McNemar's, `p_corrected` that after Holm's correction for the number of runs, on which
    the verdict rests. Images come by how sure the wrong answer was, classes with the largest gain
    first and the largest loss last.
    """

    run: Path
    verdict: Verdict
    text: str
    top1: PairedDifference
    macro_f1: PairedDifference
    p: float
    p_corrected: float
    right_in_run_only: tuple[Disagreement, ...]
    right_in_baseline_only: tuple[Disagreement, ...]
    per_class: tuple[ClassChange, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs on their `count` common images of a split; the first run is the baseline.

    `level` is that of the intervals. `warnings` are reasons not to take the comparison at face
    value, `notes` how to read it.
    """

    split: Split
    count: int
    level: float
    baseline: Path
    runs: tuple[ComparedRun, ...]
    differences: tuple[RunDifference, ...]
    settings: tuple[SettingDifference, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def compare_runs(run_dirs: Sequence[Path], *, split: Split = "val") -> Comparison:
    """Compare runs by their predictions for the images of a split that all of them have.

    Raises:
        UsageError: fewer than two runs, a run twice, or a path that is no run.
        ModelError: a run has no predictions for the split, or they are damaged.
        DataError: the runs have no image in common, or differ about an image's label.
    """
    answers = read_answers(run_dirs, split)
    numbers = _number_classes(answers)
    runs = tuple(_summarize(*pair) for pair in zip(answers, numbers, strict=True))
    p_values = [mcnemar(numbers[0].correct, other.correct)[2] for other in numbers[1:]]
    corrected = holm(p_values)
    differences = tuple(
        _compare_two((answers[0], answers[index]), (numbers[0], numbers[index]), *p, len(p_values))
        for index, p in enumerate(zip(p_values, corrected, strict=True), start=1)
    )
    return Comparison(
        split=split,
        count=len(answers[0].rows),
        level=LEVEL,
        baseline=runs[0].run,
        runs=runs,
        differences=differences,
        settings=find_setting_differences([each.record for each in answers]),
        warnings=tuple(find_warnings(answers, split)),
        notes=tuple(_find_notes(runs, differences, len(answers[0].rows), split)),
    )


# --- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Numbers:
    """A run's answers as numbers: `labels` and `predictions` `[N]` index `classes`."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    correct: NDArray[np.bool_]  # [N]


def _number_classes(answers: Sequence[RunAnswers]) -> list[_Numbers]:
    """Number the classes of all runs by their names, in the baseline's order first."""
    listed = [name for each in answers for name in each.record.classes]
    met = {name for each in answers for row in each.rows for name in (row.label, row.prediction)}
    classes = tuple(dict.fromkeys([*listed, *sorted(met)]))
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[row.label] for row in answers[0].rows])
    return [
        _Numbers(
            classes,
            labels,
            np.array([numbers[row.prediction] for row in each.rows]),
            np.array([row.correct for row in each.rows]),
        )
        for each in answers
    ]


def _summarize(answers: RunAnswers, numbers: _Numbers) -> ComparedRun:
    # Classes that do not occur are left out of the matrix.
    met, places = np.unique(np.stack([numbers.labels, numbers.predictions]), return_inverse=True)
    matrix = np.zeros((len(met), len(met)), dtype=np.int64)
    np.add.at(matrix, tuple(places.reshape(2, -1)), 1)
    intervals = bootstrap_confusion(matrix, level=LEVEL)
    record = answers.record
    result, model = record.result, record.run_dir / MODEL_NAME
    return ComparedRun(
        run=record.run_dir,
        top1=float(numbers.correct.mean()),
        top1_interval=intervals.accuracy,
        macro_f1=macro_f1(matrix),
        macro_f1_interval=intervals.macro_f1,
        left_out=answers.left_out,
        best_epoch=None if result is None else result.best_epoch,
        epochs=len(record.metrics),
        seconds=None if result is None else result.seconds,
        model_bytes=model.stat().st_size if model.is_file() else None,
        val_top1_by_epoch=tuple(row.val_top1 for row in record.metrics),
    )


def _compare_two(
    answers: tuple[RunAnswers, RunAnswers],
    numbers: tuple[_Numbers, _Numbers],
    p: float,
    p_corrected: float,
    comparisons: int,
) -> RunDifference:
    """The second run against the first, the baseline."""
    before, after = (each.correct for each in numbers)
    gained, lost = after & ~before, before & ~after
    top1 = paired_bootstrap(before, after, level=LEVEL)
    verdict: Verdict = "unclear"
    if p_corrected < 1 - LEVEL:
        verdict = "better" if top1.difference > 0 else "worse"
    baseline, run = (each.record.run_dir for each in answers)
    facts = _describe_difference(top1, p_corrected, int((gained | lost).sum()), comparisons)
    text = f"{run} is {verdict} than {baseline}: {facts}"
    if verdict == "unclear":
        text = f"No difference between {run} and {baseline} can be shown: {facts}"
    return RunDifference(
        run=run,
        verdict=verdict,
        text=text,
        top1=top1,
        macro_f1=paired_bootstrap_macro_f1(
            numbers[0].labels, numbers[0].predictions, numbers[1].predictions, level=LEVEL
        ),
        p=p,
        p_corrected=p_corrected,
        right_in_run_only=_list_images(answers, gained),
        right_in_baseline_only=_list_images(answers, lost),
        per_class=_count_classes(numbers[0], before, after),
    )


def _describe_difference(
    top1: PairedDifference, p: float, disagreements: int, comparisons: int
) -> str:
    if not disagreements:
        return "both are right on the same images"
    shown = "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"
    low, high = map(format_points, top1.interval)
    text = (
        f"{format_points(top1.difference)} points of top-1, {100 * LEVEL:.0f} % interval "
        f"{low} to {high}, {shown}{' (corrected)' if comparisons > 1 else ''}"
    )
    # All on one side: p is then as low as that many images can make it.
    needed = next(n for n in count(1) if comparisons * 2.0 ** (1 - n) < 1 - LEVEL)
    if p >= 1 - LEVEL and disagreements < needed:
        images = "1 image" if disagreements == 1 else f"{disagreements} images"
        text += f"; only one is right on {images}, and it takes at least {needed} to show one"
    return text


def format_points(difference: float) -> str:
    """A difference of shares in points of percent, with its sign: +3.5, -0.4, 0.0."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _list_images(
    answers: tuple[RunAnswers, RunAnswers], chosen: NDArray[np.bool_]
) -> tuple[Disagreement, ...]:
    images = []
    for index in np.flatnonzero(chosen).tolist():
        rows = [each.rows[index] for each in answers]
        both = [Answer(row.prediction, row.probability) for row in rows]
        images.append(Disagreement(rows[0].path, rows[0].label, *both))
    return tuple(sorted(images, key=lambda each: -each.wrong.probability))


def _count_classes(
    numbers: _Numbers, before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> tuple[ClassChange, ...]:
    """Classes with images, the largest gain first and the largest loss last."""
    columns = [
        np.bincount(numbers.labels[chosen], minlength=len(numbers.classes)).tolist()
        for chosen in (np.ones_like(before), before, after, after & ~before, before & ~after)
    ]
    changes = [
        ClassChange(name, *counts)
        for name, *counts in zip(numbers.classes, *columns, strict=True)
        if counts[0]
    ]
    return tuple(sorted(changes, key=lambda each: (each.lost - each.gained, each.class_)))


def _find_notes(
    runs: Sequence[ComparedRun], differences: Sequence[RunDifference], images: int, split: Split
) -> Iterator[str]:
    if any(each.verdict == "unclear" for each in differences):
        visible = smallest_visible_difference(images, runs[0].top1, level=LEVEL)
        points = f"{100 * visible:.{0 if visible >= 0.015 else 1}f}"
        yield (
            f"{images:,} images tell differences from about {points} points on; more images show "
            "smaller ones"
        )
    if len(differences) > 1:
        yield (
            f"p is corrected for {len(differences)} comparisons with {runs[0].run} (Holm); the "
            "others are not compared with one another"
        )
    if split == "val" and all(predictions_path(each.run, "test").exists() for each in runs):
        yield "the validation images also chose each run's epoch: --split test is the fairer judge"
