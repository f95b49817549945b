"""The most probable classes of images: one answer or one reason for every input, in order."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, Literal

from vtrain.data.batches import Batch
from vtrain.data.loaders import build_stream_loader
from vtrain.data.transforms import EvalTransform
from vtrain.data.workers import resolve_workers
from vtrain.errors import UsageError
from vtrain.inference.forward import (
    NOT_FINITE,
    compute_probabilities,
    find_finite_rows,
    find_model_device,
)
from vtrain.inference.metrics import rank_classes
from vtrain.inference.streams import choose_streams, compute_in_order
from vtrain.results.inputs import FoundInputs, PredictInput
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.json_csv import SCHEMA
from vtrain.system.reporter import SILENT, Reporter

LOOK_AHEAD = 65  # inputs; fewer are read without workers
ERRORS_AT_ONCE = 1000
UNKNOWN = "unknown"  # the answer for what is rejected


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One class and its probability between 0 and 1."""

    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one input: classes by falling probability, or the reason why there is none.

    `distance` tells how unlike the training images it is, see `ImagePrediction`; None where the
    model cannot tell. `rejected` is why the answer is `unknown` in spite of its classes.
    """

    path: str
    predictions: tuple[ClassProbability, ...] = ()
    error: str | None = None
    distance: float | None = None
    rejected: Literal["confidence", "distance"] | None = None

    @property
    def answer(self) -> str | None:
        """The most probable class, or `unknown`; None with an error."""
        if self.error is not None or not self.predictions:
            return None
        return UNKNOWN if self.rejected else self.predictions[0].name


@dataclass(frozen=True, slots=True)
class Answering:
    """How answers are made.

    `raw` leaves the model's temperature out; `tta` averages over four views of each image. The
    answer is `unknown` where the most probable class has less than `min_confidence` (0 to 1), or
    the image is further than `max_distance` from the training images, in units of the distance
    beyond which 5 % of the validation images lie.
    """

    raw: bool = False
    tta: bool = False
    min_confidence: float | None = None
    max_distance: float | None = None

    def judge(self, answer: Prediction) -> Prediction:
        """The answer, rejected where it is too unsure or too far away."""
        if not answer.predictions:
            return answer
        if self.max_distance is not None and (answer.distance or 0.0) > self.max_distance:
            return replace(answer, rejected="distance")
        confidence = answer.predictions[0].probability
        if self.min_confidence is not None and confidence < self.min_confidence:
            return replace(answer, rejected="confidence")
        return answer


def predict(
    inputs: Iterable[PredictInput | None],
    model: LoadedModel,
    *,
    top_k: int = 5,
    answering: Answering | None = None,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    reporter: Reporter = SILENT,
) -> Iterator[Prediction]:
    """One `Prediction` per input, in their order, each as soon as its batch is done.

    An image that cannot be read, or for which the model gives NaN, is answered with an error and
    never with a class. `top_k` above the number of classes gives all classes. The same batches
    give the same bits as `evaluate`; another `batch_size` may change float32 rounding, which moves
    probabilities by some 1e-6.

    Inputs are taken as they are needed, so that the memory needed does not grow with their number:
    a batch is full before it is computed, and workers read ahead (see `build_stream_loader`), on a
    CPU by as many batches more as are computed at a time. None among them, as `FoundInputs` gives
    it, says that the next one is not there yet: all before it are answered first.
    `auto` looks at the first 65 inputs to see whether workers are worth while; where these are not
    there yet, they are. `reporter` is told of workers that were lost.

    Raises:
        UsageError: `top_k` is below 1, or a bound is NaN, or a distance is asked for that the model
            does not know.
        ResourceError: while iterating: a loader worker died or hung.
    """
    if top_k < 1:
        raise UsageError(f"top-k is {top_k}, expected 1 or more")
    answering = answering or Answering()
    bounds = {"min-confidence": answering.min_confidence, "max-distance": answering.max_distance}
    for name, value in bounds.items():
        if value is not None and math.isnan(value):  # it would let everything pass
            raise UsageError(f"{name} is {value}, expected a number")
    if answering.max_distance is not None and model.novelty is None:
        raise UsageError(
            f"a distance was given, but {model.source} does not know its training images",
            "leave --max-distance out, or use a model that vtrain has finished training",
        )
    if UNKNOWN in model.classes and any(value is not None for value in bounds.values()):
        reporter.warn(
            f"the model has a class called '{UNKNOWN}', as is the answer for what is rejected: "
            "JSON and CSV tell them apart by `rejected`"
        )
    return _answer(inputs, model, top_k, answering, batch_size, workers, reporter)


def _answer(
    inputs: Iterable[PredictInput | None],
    model: LoadedModel,
    top_k: int,
    answering: Answering,
    batch_size: int,
    workers: int | Literal["auto"],
    reporter: Reporter,
) -> Iterator[Prediction]:
    inputs = inputs.pausing() if isinstance(inputs, FoundInputs) else iter(inputs)
    if workers == "auto":
        first = list(_look_ahead(inputs))
        paused = first[-1:] == [None]
        count = LOOK_AHEAD if paused else len(first)
        inputs, workers = chain(first, inputs), resolve_workers(workers, count)
    waiting: deque[PredictInput] = deque()
    device = find_model_device(model.classifier)
    batches = build_stream_loader(
        _form_batches(inputs, waiting, batch_size),
        EvalTransform(model.preprocessing),
        workers=workers,
        pin_memory=device.type == "cuda",
        reporter=reporter,
    )
    answered = 0
    for _, answers in compute_in_order(
        batches,
        partial(_answer_batch, model=model, top_k=top_k, answering=answering),
        streams=choose_streams(device),
    ):
        yield from _take_errors(waiting)
        for position in sorted(answers):
            # An answer must never reach another input than its own.
            assert position == answered, f"batch holds input {position}, expected {answered}"
            answered += 1
            yield replace(answers[position], path=waiting.popleft().path)
            yield from _take_errors(waiting)
    yield from _take_errors(waiting)
    assert not waiting, f"no answer for {len(waiting)} inputs"


def _look_ahead(inputs: Iterator[PredictInput | None]) -> Iterator[PredictInput | None]:
    """The first inputs, up to one that is not there yet."""
    for each in islice(inputs, LOOK_AHEAD):
        yield each
        if each is None:
            return


def _form_batches(
    inputs: Iterable[PredictInput | None], waiting: deque[PredictInput], batch_size: int
) -> Iterator[list[Path]]:
    """Batches of the images among the inputs, all of which queue up in `waiting`."""
    paths: list[Path] = []
    errors = 0
    for each in inputs:
        if each is None:
            if paths:
                yield paths
                paths, errors = [], 0
            while waiting:  # batches of none push the others through all that reads ahead
                yield []
            continue
        waiting.append(each)
        if each.error is None:
            paths.append(Path(each.path))
        else:
            errors += 1
        # Without an image the errors can be told now: a batch of none lets them out.
        if len(paths) == batch_size or (errors >= ERRORS_AT_ONCE and not paths):
            yield paths
            paths, errors = [], 0
    if paths:
        yield paths


def _take_errors(waiting: deque[PredictInput]) -> Iterator[Prediction]:
    """Answers for what stands before the first image in the queue."""
    while waiting and waiting[0].error is not None:
        each = waiting.popleft()
        yield Prediction(each.path, error=each.error)


def _answer_batch(
    batch: Batch, model: LoadedModel, top_k: int, answering: Answering
) -> dict[int, Prediction]:
    """Answers by position, without their paths."""
    answers = {position: Prediction("", error=reason) for position, reason in batch.failures}
    if not len(batch.positions):
        return answers
    compute, temperature = model.choose_compute(raw=answering.raw, tta=answering.tta)
    outputs = compute(batch.inputs)
    logits = outputs.logits
    # Ranked by the logits, so that probabilities that round to 0 or 1 tie in no case.
    ranked = rank_classes(logits, top_k)
    probabilities = compute_probabilities(logits, temperature).gather(1, ranked)
    distances: Iterable[float | None] = repeat(None)
    if model.novelty is not None and outputs.features is not None:
        distances = model.novelty.distances(outputs.features).tolist()
    columns = (batch.positions, ranked, probabilities, find_finite_rows(logits))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for (position, indices, values, finite), distance in zip(rows, distances, strict=False):
        if not finite:
            answers[position] = Prediction("", error=NOT_FINITE)
            continue
        named = zip((model.classes[index] for index in indices), values, strict=True)
        found = tuple(ClassProbability(name, probability) for name, probability in named)
        answers[position] = answering.judge(Prediction("", found, distance=distance))
    return answers


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """The object that one line of `vtrain predict --json` holds."""
    return {
        "schema": SCHEMA,
        "path": prediction.path,
        "status": "ok" if prediction.error is None else "error",
        "predictions": [
            {"class": each.name, "probability": each.probability} for each in prediction.predictions
        ],
        "error": prediction.error,
        "answer": prediction.answer,
        "rejected": prediction.rejected,
        "distance": prediction.distance,
    }


def prediction_csv_header(top_k: int) -> list[str]:
    """Column names for `top_k` classes: path, status, class_1, probability_1, …, error, more."""
    ranks = range(1, top_k + 1)
    pairs = [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
    return ["path", "status", *pairs, "error", "answer", "rejected", "distance"]


def prediction_csv_row(prediction: Prediction, top_k: int) -> list[object]:
    """The cells under `prediction_csv_header(top_k)`; None where there is nothing to say."""
    found = prediction.predictions[:top_k]
    pairs: list[object] = [cell for each in found for cell in (each.name, each.probability)]
    pairs += [None] * (2 * top_k - len(pairs))
    status = "ok" if prediction.error is None else "error"
    more = (prediction.error, prediction.answer, prediction.rejected, prediction.distance)
    return [prediction.path, status, *pairs, *more]
