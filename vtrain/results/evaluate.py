"""Metrics of a model on a labelled folder, and the prediction for each of its images."""

from pathlib import Path
from typing import Literal

from vtrain.data.folders import name_first_skipped, report_skipped, scan_labelled
from vtrain.data.image_sets import LabelledImages
from vtrain.data.lists import FOUND_BY_NAME, ListLayout
from vtrain.data.loaders import build_eval_loader
from vtrain.data.transforms import EvalTransform
from vtrain.data.workers import resolve_workers
from vtrain.errors import DataError
from vtrain.inference.forward import find_model_device
from vtrain.inference.scores import Scoring, evaluate_model
from vtrain.inference.streams import choose_streams
from vtrain.runs.evaluation_files import (
    NAMED_AT_MOST,
    EvaluationResult,
    ImagePrediction,
    build_result,
    list_predictions,
)
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.reporter import Reporter
from vtrain.system.text import one_line


def evaluate(
    folder: Path,
    model: LoadedModel,
    *,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    raw: bool = False,
    tta: bool = False,
    layout: ListLayout = FOUND_BY_NAME,
    reporter: Reporter,
) -> tuple[EvaluationResult, list[ImagePrediction]]:
    """Metrics on a folder with one subfolder per class, and the prediction of every image.

    Classes are matched to the model's by name. Images that cannot be read are in `failures` of
    the result and count in no metric; whether that is an error is up to the caller. `raw` leaves
    the model's temperature out, `tta` averages over four views of each image. `layout` says how a
    list is read.

    Raises:
        DataError: not a labelled folder, a class that the model lacks, or no readable image.
        ModelError: the model gives logits that are not finite.
        ResourceError: a loader worker died or hung.
    """
    images = _scan(folder, model, layout, reporter)
    for message in describe_match(images):
        reporter.say(message)
    report_skipped(images.root, images.skipped, reporter, images)
    device = find_model_device(model.classifier)
    batches = build_eval_loader(
        images.paths,
        images.labels,
        EvalTransform(model.preprocessing),
        batch_size=batch_size,
        workers=resolve_workers(workers, len(images)),
        pin_memory=device.type == "cuda",
        reporter=reporter,
    )
    compute, temperature = model.choose_compute(raw=raw, tta=tta)
    with reporter.progress(len(images), "evaluating") as bar:
        evaluation = evaluate_model(
            compute,
            batches,
            num_classes=len(model.classes),
            device=device,
            scoring=Scoring(temperature, model.novelty),
            streams=choose_streams(device),
            bar=bar,
        )
    found = build_result(evaluation, images, temperature=1.0 if raw else model.temperature)
    return found, list_predictions(evaluation, images)


def _scan(
    folder: Path, model: LoadedModel, layout: ListLayout, reporter: Reporter
) -> LabelledImages:
    classes = model.classes
    # ImageNet's published names repeat ("crane" the bird, "crane" the machine): a folder of such
    # a name is taken for the first of them, and its images count once.
    numbers = {name: number for number, name in reversed(list(enumerate(classes)))}
    names = tuple(dict.fromkeys(classes))
    found = scan_labelled(
        folder,
        classes=names,
        name="folder",
        layout=layout,
        aliases=dict(zip(model.class_ids, classes, strict=False)),
        reporter=reporter,
    )
    labels = tuple(numbers[names[label]] for label in found.labels)
    if not labels:
        raise DataError(
            f"{one_line(folder)} holds no images in folders named like the model's classes"
            f"{name_first_skipped(found.skipped)}"
        )
    return LabelledImages(folder, tuple(classes), found.paths, labels, found.skipped)


def describe_match(images: LabelledImages) -> list[str]:
    """What a user should know about the match of a folder to the model's classes."""
    counts = list(zip(images.classes, images.class_counts(), strict=True))
    present = {name for name, count in counts if count}
    missing = [name for name, _ in counts if name not in present]
    messages = [
        f"class {name!r} is the name of {images.classes.count(name)} of the model's classes; "
        f"the folder is taken for number {number}, counted from 0"
        for number, (name, count) in enumerate(counts)
        if count and images.classes.count(name) > 1
    ]
    if missing:
        named = ": " + ", ".join(map(one_line, missing)) if len(missing) <= NAMED_AT_MOST else ""
        messages.append(
            f"{len(missing)} of the model's {len(images.classes)} classes have no images "
            f"in {one_line(images.root)}{named}; they can still be predicted"
        )
    return messages
