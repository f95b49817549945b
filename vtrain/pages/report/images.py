"""What a report says of a run beyond its files: an evaluation in safe types, mistakes, a map."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from vtrain.pages.report.content import Content, Gallery, Picture
from vtrain.pages.report.embedding_map import sortable
from vtrain.pages.report.run_facts import NAME, Facts, known
from vtrain.pages.svg import shorten
from vtrain.pages.thumbnails import Thumbnail, make_thumbnail
from vtrain.runs.evaluation_files import ImagePrediction
from vtrain.system.text import format_percent, one_line

MOST_PICTURES = 12  # in each of the three galleries

_GALLERIES = {
    "worst": (
        "Surest mistakes",
        "Wrong predictions in which the model is most confident.",
        "None of the validation images is predicted wrongly.",
    ),
    "unsure": (
        "Least sure",
        "The two most probable classes are nearly level: the model could not decide.",
        "The predictions tell no probabilities.",
    ),
    "labels": (
        "Likely label errors",
        "The model gives the label little, and another class at least as much as it usually gives "
        "to that class (confident learning, arXiv:1911.00068). Look at them before you trust the "
        "figures: a wrong label among them costs the model a point it has earned.",
        "No validation image looks wrongly labelled to this model.",
    ),
    "strange": (
        "Unlike the training images",
        "Further from all training images than 95 % of the validation images are, the furthest "
        "first: other cameras, other subjects, or files that do not belong here.",
        "No validation image is unlike the training images, as far as is known.",
    ),
}


# --- images --------------------------------------------------------------------------------------


def find_worst(predictions: Sequence[ImagePrediction], limit: int) -> list[ImagePrediction]:
    """Wrong predictions, the most confident first."""
    wrong = [each for each in predictions if not each.correct]
    return sorted(wrong, key=lambda each: -sortable(each.probability))[:limit]


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


def choose_images(predictions: Sequence[ImagePrediction]) -> dict[str, list[ImagePrediction]]:
    """The images that a report shows: mistakes, doubts, wrong labels, strangers."""
    return {
        "worst": find_worst(predictions, MOST_PICTURES),
        "unsure": find_least_sure(predictions, MOST_PICTURES),
        "labels": find_label_errors(predictions, MOST_PICTURES),
        "strange": find_strangest(predictions, MOST_PICTURES),
    }


def add_galleries(content: Content, facts: Facts, heat_maps: Mapping[Path, Thumbnail]) -> None:
    """Images that went wrong, and images that were nearly so."""
    if not facts.predictions:
        return
    unknown = all(math.isnan(each.label_probability) for each in facts.predictions)
    thumbnails: dict[Path, Thumbnail | None] = {}
    lost = 0
    for key, chosen in choose_images(facts.predictions).items():
        title, note, none = _GALLERIES[key]
        if key == "labels" and unknown:
            none = "The predictions of this run do not tell the probability of the label."
        for each in chosen:
            if each.path not in thumbnails:
                thumbnails[each.path] = make_thumbnail(each.path)
                lost += thumbnails[each.path] is None
        pictures = tuple(
            _build_picture(each, thumbnails[each.path], heat_maps.get(each.path))
            for each in chosen
        )  # fmt: skip
        content.galleries.append(Gallery(title, note if pictures else none, pictures))
    if lost:
        first = next(path for path, picture in thumbnails.items() if picture is None)
        content.missing["pictures"] = (
            f"{lost} of {len(thumbnails)} pictures are missing: their files cannot be read from "
            f"here, the first is {one_line(first)}. Paths are relative to the folder that the run "
            f"was started in: run `{content.command}` there."
        )


def _build_picture(
    each: ImagePrediction, thumbnail: Thumbnail | None, heat_map: Thumbnail | None
) -> Picture:
    label, prediction = shorten(each.label, NAME), shorten(each.prediction, NAME)
    lines = [f"predicted {prediction}, {format_percent(known(each.probability), 0)}"]
    if each.correct:
        lines.insert(0, f"label {label}")
        if each.second and math.isfinite(each.second_probability):
            second = format_percent(each.second_probability, 0)
            lines.append(f"or {shorten(each.second, NAME)}, {second}")
    else:
        lines.insert(0, f"label {label}, {format_percent(known(each.label_probability), 0)}")
    name = shorten(each.path.name, NAME)
    text = f"{name}: labelled {label}, predicted {prediction}"
    return Picture(thumbnail, heat_map, text, (*lines, name))
