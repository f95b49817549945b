"""Labels of a run's own images that look wrong, ranked for people to look at."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vtrain.config.keys import FitConfig
from vtrain.config.run_files import RESOLVED_NAME
from vtrain.data.image_sets import LabelledImages, SkippedFile
from vtrain.data.splits import scan_splits, split_digest
from vtrain.errors import DataError, ModelError, VtrainError
from vtrain.inference.forward import prepare_for_inference
from vtrain.models.classifier import build_classifier
from vtrain.models.precision import Precision
from vtrain.models.weights import describe_weights, load_weights
from vtrain.models.zoo import find_backbone
from vtrain.results.features import Features, compute_features
from vtrain.results.suspect_labels import SuspectRanking, rank_suspects
from vtrain.runs.model_argument import LoadedModel, load_model
from vtrain.runs.record import RunRecord, read_run
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import one_line

SHOWN_NEIGHBORS = 4
SPLITS = {"train": ("train",), "val": ("val",), "both": ("train", "val")}
CSV_HEADER = (
    "rank", "path", "split", "label", "suggested", "score", "label_probability",
    "suggested_probability", "neighbors", "neighbors_agreeing",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LabelledPath:
    """An image and its class."""

    path: Path
    label: str


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label that other images speak against.

    `score` and the probabilities are between 0 and 1, see `SuspectRanking`. `agreeing` of its
    `neighbors` most similar images have the same label; `against` are the first of the others.
    """

    rank: int
    path: Path
    split: str
    label: str
    suggested: str
    score: float
    label_probability: float
    suggested_probability: float
    neighbors: int
    agreeing: int
    against: tuple[LabelledPath, ...]


@dataclass(frozen=True, slots=True)
class SuspectReport:
    """The most suspect labels of a run, and what they were found among.

    `count` images of `splits` were looked at, `judged` of these could be: others are the only ones
    of their class. `models` say whose features were asked. `failures` are images that cannot be
    read, `notes` what is not as it was when the run was made, and the like.
    """

    run_dir: Path
    splits: tuple[str, ...]
    models: tuple[str, ...]
    count: int
    judged: int
    suspects: tuple[Suspect, ...]
    failures: tuple[SkippedFile, ...]
    notes: tuple[str, ...]


def find_suspects(
    run_dir: Path,
    *,
    split: Literal["train", "val", "both"],
    top: int,
    device: torch.device,
    precision: str,
    batch_size: int,
    workers: int | Literal["auto"],
    reporter: Reporter,
) -> SuspectReport:
    """Rank the labels of a run's training or validation images by how wrong they look.

    The images are those that the config in the run folder names, as they are now. Images of both
    splits are asked in any case, the ranking has the first `top` of those of `split`.
    See `rank_suspects` for how.

    Raises:
        UsageError: it is no run folder.
        ModelError: the run has no model yet, or no config that can be read.
        DataError: the images are not there any more, or there is nothing to compare.
    """
    record = read_run(run_dir)
    model = load_model(str(run_dir), device=device, precision=precision, reporter=reporter)
    if record.config is None:
        raise ModelError(
            f"{run_dir} does not say what it was trained on: {'; '.join(record.problems)}",
            f"restore {RESOLVED_NAME} in it",
        )
    images = _Images.scan(record, record.config, reporter)
    compute = partial(compute_features, batch_size=batch_size, workers=workers, reporter=reporter)
    notes = images.find_changes(record)
    names = [model.source]
    features = compute(images.paths, model, label="features of the run's model")
    views, failures = [features], dict(features.failures)
    # Features of the run's model may depend on the labels that it was trained on.
    if record.config.freeze != "head" and record.config.model.weights != "none":
        try:
            before = build_backbone_before(record.config, model, reporter=reporter)
        except VtrainError as error:
            notes.append(f"judged by the run's model alone: {error.message}")
        else:
            names.append(before.source)
            views.append(compute(images.paths, before, label="features before training"))
            failures |= dict(views[1].failures)
    ranking, positions = _rank(images, views, failures, reporter)
    wanted = SPLITS[split]
    return SuspectReport(
        run_dir=run_dir,
        splits=wanted,
        models=tuple(names),
        count=sum(len(images.splits[name]) for name in wanted),
        judged=sum(images.split_of(positions[row]) in wanted for row in ranking.order.tolist()),
        suspects=tuple(_list_suspects(images, ranking, positions, wanted, top)),
        failures=tuple(
            SkippedFile(images.paths[place], reason) for place, reason in sorted(failures.items())
        ),
        notes=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Images:
    """Training images, and behind them those for validation."""

    splits: dict[str, LabelledImages]
    paths: Sequence[Path]
    labels: NDArray[np.int64]

    @classmethod
    def scan(cls, record: RunRecord, config: FitConfig, reporter: Reporter) -> "_Images":
        try:
            found = scan_splits(config.data, seed=config.seed, reporter=reporter)
        except DataError as error:
            raise DataError(
                f"the images of {one_line(record.run_dir)} are not where they were: "
                f"{error.message}",
                "put them back, or start a run with the images as they are now",
            ) from error
        splits = {"train": found.train, "val": found.val}
        return cls(
            splits,
            [*found.train.paths, *found.val.paths],
            np.array([*found.train.labels, *found.val.labels], dtype=np.int64),
        )

    def split_of(self, position: int) -> str:
        return "train" if position < len(self.splits["train"]) else "val"

    def name_label(self, number: int) -> str:
        return self.splits["train"].classes[number]

    def find_changes(self, record: RunRecord) -> list[str]:
        """What is said of images that are others than those the run was trained on."""
        changes = []
        if list(self.splits["train"].classes) != list(record.classes):
            changes.append("the classes are others than when the run was made")
        for name, images in self.splits.items():
            then = record.data.get(name)
            if not isinstance(then, dict) or record.data.get("bad_images"):
                continue
            if then.get("count") != len(images):
                changes.append(
                    f"data.{name} has changed since the run was made: {then.get('count')} images "
                    f"then, {len(images)} now"
                )
                continue
            digest = None
            with suppress(OSError):  # one that was there a moment ago
                digest = split_digest(images)
            if then.get("sha256") != digest:
                changes.append(
                    f"data.{name} has changed since the run was made: as many images, of other "
                    "names or sizes"
                )
        return changes


def build_backbone_before(
    config: FitConfig, model: LoadedModel, *, reporter: Reporter
) -> LoadedModel:
    """The backbone of a run as it was before training, with the preprocessing of its `model`.

    Raises:
        ModelError, UsageError, ResourceError: the weights it started from cannot be had.
    """
    spec = find_backbone(config.model.backbone)
    source = describe_weights(config.model.weights, spec)
    classifier = build_classifier(
        spec,
        num_classes=len(model.classes),
        head=config.model.head,
        image_size=model.preprocessing.crop,
        pretrained=source.pretrained_input,
        options=config.model.options,
    )
    load_weights(classifier, config.model.weights, reporter=SILENT)
    name = f"{spec.name} before training ({config.model.weights})"
    reporter.say(one_line(f"model: {name}, {model.precision}"))
    device = next(model.classifier.parameters()).device
    prepared = prepare_for_inference(classifier, Precision(model.precision, device), in_place=True)
    return LoadedModel(prepared, model.preprocessing, model.classes, name, model.precision)


def _rank(
    images: _Images, views: Sequence[Features], failures: dict[int, str], reporter: Reporter
) -> tuple[SuspectRanking, NDArray[np.int64]]:
    """The ranking of the images that all models have features of, and their positions."""
    usable = np.ones(len(images.paths), dtype=bool)
    usable[list(failures)] = False
    positions = np.flatnonzero(usable)
    if len(positions) < 2:
        raise DataError(
            f"{len(positions)} of {len(images.paths)} images can be read: there is nothing to "
            "compare"
        )
    rows = [view.values[usable[view.positions]] for view in views]
    labels = images.labels[positions]
    return rank_suspects(rows[0], labels, also=rows[1:], reporter=reporter), positions


def _list_suspects(
    images: _Images,
    ranking: SuspectRanking,
    positions: NDArray[np.int64],
    wanted: Sequence[str],
    top: int,
) -> Iterator[Suspect]:
    places = positions[ranking.order].tolist()
    rows = [
        row
        for row, place in zip(ranking.order.tolist(), places, strict=True)
        if images.split_of(place) in wanted
    ]
    for rank, row in enumerate(rows[:top], start=1):
        near = ranking.neighbors[row]
        others = near[ranking.labels[near] != ranking.labels[row]][:SHOWN_NEIGHBORS].tolist()
        yield Suspect(
            rank=rank,
            path=images.paths[positions[row]],
            split=images.split_of(positions[row]),
            label=images.name_label(ranking.labels[row]),
            suggested=images.name_label(ranking.suggested[row]),
            score=float(ranking.scores[row]),
            label_probability=float(ranking.label_probability[row]),
            suggested_probability=float(ranking.suggested_probability[row]),
            neighbors=len(near),
            agreeing=int(ranking.agreeing[row]),
            against=tuple(
                LabelledPath(
                    images.paths[positions[other]], images.name_label(ranking.labels[other])
                )
                for other in others
            ),
        )
