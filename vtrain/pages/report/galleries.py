"""Images to look at on the page of a run: mistakes, doubts, wrong labels, strangers."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtrain.pages.report.section import Section
from vtrain.pages.report.values import RESUME, report_command
from vtrain.pages.svg import shorten
from vtrain.pages.thumbnails import Gallery, Picture, Thumbnail, make_thumbnail
from vtrain.runs.evaluation_files import ImagePrediction, read_predictions
from vtrain.runs.folder import find_input
from vtrain.runs.record import RunRecord
from vtrain.system.text import format_percent, one_line

MOST_HEAT_MAPS = 12
NAME = 36  # characters of a name below a picture
MOST_PICTURES = 12  # in each of the three galleries


def find_worst(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Wrong predictions, the most confident first."""
    wrong = [each for each in predictions if not each.correct]
    return sorted(wrong, key=lambda each: (math.isnan(each.probability), -each.probability))[:limit]


def find_least_sure(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Images whose two most probable classes are nearest to each other, right or wrong."""

    def margin(each: ImagePrediction) -> float:
        second = each.second_probability
        return each.probability - (second if math.isfinite(second) else 1 - each.probability)

    known = [each for each in predictions if math.isfinite(each.probability)]
    return sorted(known, key=margin)[:limit]


def find_label_errors(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Images whose given label is likely wrong, the clearest first, by confident learning.

    A class counts as probable for an image where its probability reaches the mean probability
    that the model gives to that class on the images labelled with it. An image is listed where
    the most probable of these classes is not its label; the order is that of the label's
    probability less that of the prediction. Only the label and the two most probable classes are
    known of each image. Northcutt, Jiang and Chuang, arXiv:1911.00068.
    """
    given: dict[str, list[float]] = defaultdict(list)
    for each in predictions:
        if math.isfinite(each.label_probability):
            given[each.label].append(each.label_probability)
    thresholds = {name: math.fsum(values) / len(values) for name, values in given.items()}
    suspects = []
    for each in predictions:
        if each.correct or not math.isfinite(each.label_probability):
            continue
        for name, probability in (
            (each.prediction, each.probability),
            (each.second, each.second_probability),
        ):
            if probability >= thresholds.get(name, math.inf):
                if name != each.label:
                    suspects.append(each)
                break
    return sorted(suspects, key=lambda each: each.label_probability - each.probability)[:limit]


def find_strangest(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Images that are unlike the training images, the furthest first."""
    far = [each for each in predictions if each.distance > 1]
    return sorted(far, key=lambda each: -each.distance)[:limit]


# What finds the images, title, what is said of them, and what where there are none.
_GALLERIES = (
    (
        find_worst,
        "Surest mistakes",
        "Wrong predictions in which the model is most confident.",
        "None of the validation images is predicted wrongly.",
    ),
    (
        find_least_sure,
        "Least sure",
        "The two most probable classes are nearly level: the model could not decide.",
        "The predictions tell no probabilities.",
    ),
    (
        find_label_errors,
        "Likely label errors",
        "The model gives the label little, and another class at least as much as it usually gives "
        "to that class (confident learning, arXiv:1911.00068). Look at them before you trust the "
        "figures: a wrong label among them costs the model a point it has earned.",
        "No validation image looks wrongly labelled to this model.",
    ),
    (
        find_strangest,
        "Unlike the training images",
        "Further from all training images than 95 % of the validation images are, the furthest "
        "first: other cameras, other subjects, or files that do not belong here.",
        "No validation image is unlike the training images, as far as is known.",
    ),
)


def find_shown_images(run_dir: Path) -> list[Path]:
    """The images that deserve a heat map, at most `MOST_HEAT_MAPS`: the surest mistakes first.

    Raises:
        ModelError: the run has no predictions.
    """
    predictions = read_predictions(run_dir, "val")
    chosen = [
        *find_worst(predictions, MOST_PICTURES),
        *find_least_sure(predictions, MOST_PICTURES),
    ]
    return list(dict.fromkeys(each.path for each in chosen))[:MOST_HEAT_MAPS]


def build_galleries(
    record: RunRecord,
    predictions: Sequence[ImagePrediction] | None,
    heat_maps: Mapping[Path, Thumbnail],
) -> Section:
    """Images that went wrong, and images that were nearly so."""
    if not predictions:
        why = f"This run has no predictions-val.csv. Make it with: {RESUME}"
        if predictions is not None:
            why = "predictions-val.csv is empty."
        return Section("images", "Images to look at", missing=[why])
    written = record.config.run_dir if record.config else None
    thumbnails: dict[Path, Thumbnail | None] = {}
    galleries = []
    unknown = all(math.isnan(each.label_probability) for each in predictions)
    for find, title, note, none in _GALLERIES:
        if find is find_label_errors and unknown:
            none = "The predictions of this run do not tell the probability of the label."
        images = find(predictions, MOST_PICTURES)
        for each in images:
            if each.path not in thumbnails:
                thumbnails[each.path] = make_thumbnail(
                    find_input(record.run_dir, each.path, written)
                )
        pictures = tuple(
            _build_picture(each, thumbnails[each.path], heat_maps.get(each.path)) for each in images
        )
        galleries.append(Gallery(title, note if pictures else none, pictures))
    lost = [path for path, thumbnail in thumbnails.items() if thumbnail is None]
    missing = []
    if lost:
        missing.append(
            f"{len(lost)} of {len(thumbnails)} pictures are missing: their files cannot be read "
            f"from here, the first is {one_line(lost[0])}. Where they are in place, "
            f"`{report_command(record)}` shows them."
        )
    return Section("images", "Images to look at", missing=missing, galleries=galleries)


def _build_picture(
    each: ImagePrediction, thumbnail: Thumbnail | None, heat_map: Thumbnail | None
) -> Picture:
    label, prediction = shorten(each.label, NAME), shorten(each.prediction, NAME)
    lines = [f"predicted {prediction}, {format_percent(each.probability, 0)}"]
    if each.correct:
        lines.insert(0, f"label {label}")
        if each.second and math.isfinite(each.second_probability):
            second = format_percent(each.second_probability, 0)
            lines.append(f"or {shorten(each.second, NAME)}, {second}")
    else:
        lines.insert(0, f"label {label}, {format_percent(each.label_probability, 0)}")
    name = shorten(each.path.name, NAME)
    text = f"{name}: labelled {label}, predicted {prediction}"
    return Picture(thumbnail, text, (*lines, name), heat_map)
