"""Where in its images a model saw a class: a map for each image, and a picture of it."""

import copy
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vtrain.data.images import read_image, read_size
from vtrain.data.transforms import EvalTransform, normalize_images, to_image
from vtrain.errors import ImageError, UsageError
from vtrain.inference.forward import (
    NOT_FINITE,
    InferenceClassifier,
    compute_probabilities,
    find_finite_rows,
    find_model_device,
)
from vtrain.models.backbone_spec import Stage
from vtrain.models.classifier import Classifier
from vtrain.models.precision import Precision
from vtrain.models.saliency import (
    compute_class_maps,
    enlarge_maps,
    find_map_stage,
    find_map_stages,
)
from vtrain.results.inputs import FoundInputs, PredictInput
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.text import one_line

NAMED_CLASSES = 50  # that an error lists; of more, those that are spelt like what was typed
FEW_CELLS = 4  # a map with fewer along an edge shows little
# Rising evenly in lightness from 0.25 to 0.97 (OKLab, Ottosson 2020) and from blue by way of red
# to yellow, so that more is lighter to every eye, and in print.
RAMP = (
    (32, 14, 87),
    (94, 21, 120),
    (167, 24, 111),
    (222, 69, 68),
    (246, 134, 34),
    (255, 195, 26),
    (252, 251, 163),
)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a model's input lies in the original image, both upright (EXIF applied).

    `width` and `height` are those of the original in pixels; `left`, `top`, `right` and `bottom`
    the edges of the input in its pixels. They lie outside where the input was padded.
    """

    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What speaks for a class in one image; or the reason why there is no answer.

    `image` is the input as the model saw it (resized and cropped), `map` float32 [H, W] from 0 to
    1 over the same pixels: all 0 where nothing speaks for the class. `cells` are rows and columns
    of the map before it was enlarged. `prediction` is the most probable class, `explained` the one
    that the map is for; probabilities are from 0 to 1.
    """

    path: str
    image: Image.Image | None = None
    map: NDArray[np.float32] | None = None
    cells: tuple[int, int] = (0, 0)
    prediction: str = ""
    probability: float = 0.0
    explained: str = ""
    explained_probability: float = 0.0
    placement: Placement | None = None
    error: str | None = None

    @property
    def found(self) -> bool:
        """Whether anything in the image speaks for the class."""
        return self.map is not None and bool(self.map.any())


@dataclass(frozen=True, slots=True)
class _Request:
    """What is explained, how; `class_index` None stands for each image's own prediction."""

    classifier: Classifier
    model: LoadedModel
    stage: Stage
    class_index: int | None
    reporter: Reporter


def explain_images(
    paths: Iterable[PredictInput | Path | str],
    model: LoadedModel,
    *,
    class_name: str | None = None,
    stage: str | None = None,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> Iterator[Explanation]:
    """One `Explanation` for each input, in their order, each as soon as its batch is done.

    An image that cannot be read, or for which the model gives NaN, is answered with an error. One
    forward pass for each image, and a backward pass above the stage: a dozen images take about as
    long as to predict them. The maps are computed in float32: a model loaded in a lower precision
    is copied for the time, so load it with `precision="fp32"` for nothing else. Inputs are taken
    as they are needed; images are read here, without workers. `reporter` is told where the maps are
    coarse.

    Args:
        paths: image files; members of a tar too.
        model: from `load_model`.
        class_name: one of `model.classes`, or `#` and its number from 0; None: what each image is
            predicted as.
        stage: see `compute_class_maps`.
        batch_size: images in a forward pass.
        reporter: gets a sentence.

    Raises:
        UsageError: at the call: no such class or more than one, no such stage.
    """
    chosen = find_map_stage(model.classifier.spec, stage)
    index = None if class_name is None else find_class(class_name, model.classes)
    job = _Request(take_full_precision(model.classifier), model, chosen, index, reporter)
    inputs = paths.pausing() if isinstance(paths, FoundInputs) else iter(paths)
    return _explain(inputs, job, batch_size)


def find_class(name: str, classes: Sequence[str]) -> int:
    """Index of the class of this name, or of the number behind `#`.

    Raises:
        UsageError: no such class, or several of this name.
    """
    found = [index for index, each in enumerate(classes) if each == name]
    number = name.removeprefix("#")
    if not found and name.startswith("#") and number.isdecimal() and int(number) < len(classes):
        return int(number)
    if len(found) == 1:
        return found[0]
    if found:
        numbers = " and ".join(str(index) for index in found)
        message = f"class {one_line(name)!r} is the name of classes {numbers} of the model"
        raise UsageError(message, f"choose one by its number, such as --class '#{found[0]}'")
    lower = {each.casefold(): each for each in reversed(classes)}
    close = difflib.get_close_matches(name.casefold(), lower, n=5)
    named = [lower[each] for each in close]
    message = f"the model knows no class {name!r}"
    message += f", did you mean {one_line(named[0])!r}?" if named else ""
    if len(classes) <= NAMED_CLASSES:
        raise UsageError(message, f"classes: {', '.join(map(one_line, classes))}")
    some, kind = (named, "spelt alike") if len(named) > 1 else (classes[:5], "the first")
    raise UsageError(message, f"{len(classes):,} classes, {kind}: {', '.join(map(one_line, some))}")


def take_full_precision(classifier: Classifier) -> Classifier:
    """The classifier, or a copy that computes in float32 where it does so in a lower precision."""
    if not isinstance(classifier, InferenceClassifier) or classifier.precision.name == "fp32":
        return classifier
    backbone = copy.deepcopy(classifier.backbone).float()
    precision = Precision("fp32", classifier.precision.device)
    return InferenceClassifier(backbone, classifier.head, precision, like=classifier)


def _explain(
    paths: Iterator[PredictInput | Path | str | None], job: _Request, batch_size: int
) -> Iterator[Explanation]:
    shown = False
    transform = EvalTransform(job.model.preprocessing)
    while taken := list(_take_batch(paths, batch_size)):
        read = [_read(each, transform) for each in taken]
        images = [image for image in read if not isinstance(image, Explanation)]
        answers = iter(_answer_all(images, job) if images else ())
        for each in read:
            answer = each if isinstance(each, Explanation) else next(answers)
            if answer.error is None and not shown and min(answer.cells) < FEW_CELLS:
                job.reporter.say(_describe_coarse(answer.cells, job))
                shown = True
            yield answer


def _take_batch(
    paths: Iterator[PredictInput | Path | str | None], size: int
) -> Iterator[PredictInput | Path | str]:
    """The next inputs, up to one that is not there yet."""
    taken = 0
    for each in paths:
        if each is not None:
            yield each
            taken += 1
        if taken == size or (taken and each is None):
            return


def _describe_coarse(cells: tuple[int, int], job: _Request) -> str:
    stages = [stage.name for stage in find_map_stages(job.classifier.spec)]
    earlier = stages[: stages.index(job.stage.name)]
    more = f"; finer ones come from {', '.join(earlier)}" if earlier else ""
    return f"the maps of {job.stage.name} have only {cells[0]} x {cells[1]} cells{more}"


@dataclass(frozen=True, slots=True)
class _ReadImage:
    """An input as the model gets it: uint8 [3, H, W]."""

    path: str
    pixels: Tensor
    placement: Placement


def _read(given: PredictInput | Path | str, transform: EvalTransform) -> _ReadImage | Explanation:
    if isinstance(given, PredictInput):
        if given.error is not None:
            return Explanation(given.path, error=given.error)
        given = given.path
    try:
        # The header has the true size: a large JPEG is decoded at a part of it.
        size = read_size(given)
        image = read_image(given, min_edge=transform.resize, background=transform.background)
    except ImageError as error:
        return Explanation(str(given), error=error.message)
    return _ReadImage(str(given), transform(image), _place(size, image.size, transform))


def _place(size: tuple[int, int], decoded: tuple[int, int], transform: EvalTransform) -> Placement:
    """Where the crop lies in an image of this size, which may lie on its side, decoded so."""
    width, height = size
    if (width > height) != (decoded[0] > decoded[1]):
        width, height = height, width
    resized = transform.find_size(decoded)
    left, top = transform.find_corner(resized)
    x, y = width / resized[0], height / resized[1]
    right, bottom = left + transform.crop, top + transform.crop
    return Placement(width, height, left * x, top * y, right * x, bottom * y)


def _answer_all(images: Sequence[_ReadImage], job: _Request) -> Iterator[Explanation]:
    classifier, model = job.classifier, job.model
    pixels = torch.stack([image.pixels for image in images])
    device = find_model_device(classifier)
    inputs = normalize_images(pixels, model.preprocessing, device=device)
    classes = None
    if job.class_index is not None:
        classes = torch.full((len(images),), job.class_index, device=device)
    small, logits = compute_class_maps(classifier, inputs, classes, stage=job.stage.name)
    finite = (find_finite_rows(logits) & find_finite_rows(small)).tolist()
    crop = model.preprocessing.crop
    maps = enlarge_maps(small, (crop, crop)).cpu().numpy()
    predicted = logits.argmax(dim=1).tolist()
    probabilities = compute_probabilities(logits, model.temperature).tolist()
    for row, image in enumerate(images):
        if not finite[row]:
            yield Explanation(image.path, error=NOT_FINITE)
            continue
        explained = predicted[row] if job.class_index is None else job.class_index
        yield Explanation(
            image.path,
            to_image(image.pixels),
            maps[row],
            (small.shape[1], small.shape[2]),
            model.classes[predicted[row]],
            probabilities[row][predicted[row]],
            model.classes[explained],
            probabilities[row][explained],
            image.placement,
        )


def overlay(image: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """The image in gray with the map over it: RGB, as large as the image.

    `values` is [H, W] from 0 to 1, as large as the image. Where it is 0 the gray image shows, and
    the more it is the lighter (`RAMP`) and the denser is the colour. Gray because colours of the
    image would look like some of the map.
    """
    gray = np.asarray(image.convert("L"), dtype=np.float32)[:, :, None]
    anchors = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, anchors, channel) for channel in zip(*RAMP, strict=True)]
    colour = np.stack(channels, axis=2)
    opacity = (0.8 * values**0.75)[:, :, None]
    mixed = gray * (1 - opacity) + colour * opacity
    return Image.fromarray(np.rint(mixed).astype(np.uint8))
