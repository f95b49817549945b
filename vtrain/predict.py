"""The most probable classes of images: one answer or one reason for every input, in order."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from torch import Tensor

from vtrain.checkpoint import LoadedModel
from vtrain.data.folders import describe_skipped, name_first_skipped, scan_images
from vtrain.data.loaders import Batch, build_eval_loader, resolve_workers, worker_troubles
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, UsageError
from vtrain.records import ClassProbability, Prediction
from vtrain.training.inference import (
    NOT_FINITE,
    compute_outputs,
    find_finite_rows,
    find_model_device,
    find_top_classes,
)

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class PredictInput:
    """One input as it will be named in the answer, or the reason why it stands for no image."""

    path: str
    error: str | None = None


def find_inputs(
    arguments: Sequence[str],
    stdin: BinaryIO,
    *,
    notify: Callable[[str], None],
) -> list[PredictInput]:
    """The images that files, folders, globs and `-` (one path per line on `stdin`) stand for.

    Arguments keep their order and may repeat; a folder gives its images at any depth, sorted, and
    a glob its matches, sorted. What exists under its literal name is not taken for a glob, and
    lines of `stdin` never are. A file named outright is an input whatever its name ends with.
    What stands for no image gives one input with an error.
    """
    inputs: list[PredictInput] = []
    for argument in arguments:
        if argument == "-":
            for line in stdin:
                name = os.fsdecode(line).rstrip("\r\n")
                if name:
                    inputs.extend(_expand(name, notify))
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            # Path.glob takes no absolute patterns
            names = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207
            for name in names:
                inputs.extend(_expand(name, notify))
            if not names:
                inputs.append(PredictInput(argument, "no file matches this pattern"))
        else:
            inputs.extend(_expand(argument, notify))
    return inputs


def _expand(name: str, notify: Callable[[str], None]) -> list[PredictInput]:
    try:
        if not name:
            return [PredictInput(name, "the path is empty")]
        path = Path(name)
        if not path.is_dir():
            path.stat()
            return [PredictInput(name)]
        images, skipped = scan_images(path)
    except FileNotFoundError:
        return [PredictInput(name, "no such file or folder")]
    except DataError as error:
        return [PredictInput(name, error.message)]
    except (OSError, ValueError) as error:
        return [PredictInput(name, getattr(error, "strerror", None) or str(error))]
    if not images:
        return [PredictInput(name, f"the folder holds no images{name_first_skipped(skipped)}")]
    if skipped:
        notify(describe_skipped(name, skipped))
    return [PredictInput(str(image)) for image in images]


def predict(
    inputs: Sequence[PredictInput],
    model: LoadedModel,
    *,
    top_k: int = 5,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
) -> Iterator[Prediction]:
    """One `Prediction` per input, in their order, each as soon as its batch is done.

    An image that cannot be read, or for which the model gives NaN, is answered with an error and
    never with a class. `top_k` above the number of classes gives all classes. The same batches
    give the same bits as `evaluate`; another `batch_size` may change float32 rounding, which moves
    probabilities by some 1e-6.

    Raises:
        UsageError: `top_k` is below 1.
        ResourceError: while iterating: a loader worker died or hung.
    """
    if top_k < 1:
        raise UsageError(f"top-k is {top_k}, expected 1 or more")
    names = [each.path for each in inputs if each.error is None]
    batches = build_eval_loader(
        [Path(name) for name in names],
        None,
        EvalTransform(model.preprocessing),
        batch_size=batch_size,
        workers=resolve_workers(workers, len(names)),
        pin_memory=find_model_device(model.classifier).type == "cuda",
    )
    return _merge(inputs, _answer_batches(batches, names, model, top_k))


def _merge(inputs: Iterable[PredictInput], answers: Iterator[Prediction]) -> Iterator[Prediction]:
    for each in inputs:
        if each.error is not None:
            yield Prediction(each.path, error=each.error)
        else:
            yield next(answers)


def _answer_batches(
    batches: Iterable[Batch], names: Sequence[str], model: LoadedModel, top_k: int
) -> Iterator[Prediction]:
    expected = 0
    for batch in batches:
        with worker_troubles():
            answers = _answer_batch(batch, names, model, top_k)
        for position in sorted(answers):
            # An answer must never reach another input than its own.
            assert position == expected, f"batch holds input {position}, expected {expected}"
            expected += 1
            yield answers[position]


def _answer_batch(
    batch: Batch, names: Sequence[str], model: LoadedModel, top_k: int
) -> dict[int, Prediction]:
    answers = {
        position: Prediction(names[position], error=reason) for position, reason in batch.failures
    }
    if not len(batch.positions):
        return answers
    device = find_model_device(model.classifier)
    logits = compute_outputs(model.classifier, batch.inputs, model.preprocessing, device)
    ranked, probabilities = find_top_classes(logits, top_k)
    columns: tuple[Tensor, ...] = (
        batch.positions,
        ranked,
        probabilities,
        find_finite_rows(logits),
    )
    for position, indices, values, finite in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        answers[position] = (
            Prediction(names[position], _name_classes(model.classes, indices, values))
            if finite
            else Prediction(names[position], error=NOT_FINITE)
        )
    return answers


def _name_classes(
    classes: Sequence[str], indices: Sequence[int], probabilities: Sequence[float]
) -> tuple[ClassProbability, ...]:
    return tuple(
        ClassProbability(classes[index], probability)
        for index, probability in zip(indices, probabilities, strict=True)
    )


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
    }


def prediction_csv_header(top_k: int) -> list[str]:
    """Column names for `top_k` classes: path, status, class_1, probability_1, …, error."""
    ranks = range(1, top_k + 1)
    pairs = [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
    return ["path", "status", *pairs, "error"]


def prediction_csv_row(prediction: Prediction, top_k: int) -> list[object]:
    """The cells under `prediction_csv_header(top_k)`; None where there is nothing to say."""
    found = prediction.predictions[:top_k]
    pairs: list[object] = [cell for each in found for cell in (each.name, each.probability)]
    pairs += [None] * (2 * top_k - len(pairs))
    status = "ok" if prediction.error is None else "error"
    return [prediction.path, status, *pairs, prediction.error]


def format_prediction(prediction: Prediction) -> str:
    """One line for people: `path: class 97.1 %, class 2.0 %`, or `path: error: reason`."""
    if prediction.error is not None:
        return f"{prediction.path}: error: {prediction.error}"
    named = (f"{each.name} {100 * each.probability:.1f} %" for each in prediction.predictions)
    return f"{prediction.path}: {', '.join(named)}"
