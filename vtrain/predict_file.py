"""Predictions written to a file piece by piece; one that was cut off can be gone on with."""

import csv
import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vtrain.checkpoint import LoadedModel
from vtrain.console import one_line
from vtrain.data.loaders import Notify
from vtrain.errors import ExitCode, UsageError
from vtrain.files import (
    encode_text,
    escape_surrogates,
    format_csv_row,
    format_json_line,
    read_csv_cell,
    write_error,
)
from vtrain.partial_array import lock_output
from vtrain.predict import (
    Answering,
    PredictInput,
    predict,
    prediction_csv_header,
    prediction_csv_row,
    prediction_json,
)
from vtrain.records import ClassProbability, Prediction
from vtrain.signals import build_stop_error

FileForm = Literal["json", "csv"]
FLUSH_SECONDS = 1.0
TOLERANCE = 0.05  # between probabilities on other hardware; another model differs by more
GO_ON = "go on with the same command and --resume"
SUFFIXES: dict[str, FileForm] = {".jsonl": "json", ".csv": "csv"}


@dataclass(frozen=True, slots=True)
class WrittenPredictions:
    """What a file of predictions holds: inputs that were answered, and how many with an error."""

    count: int
    failed: int


@dataclass(slots=True)
class _Part:
    """The whole answers of a file: where they end, and those of the last batch, to try again."""

    count: int = 0
    failed: int = 0
    end: int = 0  # bytes
    last_batch: tuple[tuple[PredictInput, Prediction], ...] = ()


def choose_form(output: Path, *, as_json: bool, as_csv: bool) -> FileForm:
    """What to write, by the options or by the file's suffix.

    Raises:
        UsageError: neither says it, or they say different things.
    """
    by_suffix = SUFFIXES.get(output.suffix.lower())
    asked: FileForm | None = "json" if as_json else "csv" if as_csv else None
    chosen = asked or by_suffix
    if chosen is None:
        raise UsageError(
            f"output {output} ends with neither .jsonl nor .csv", "add --json or --csv"
        )
    if by_suffix not in (None, chosen):
        raise UsageError(f"--{chosen} was given, but output {output} ends with {output.suffix}")
    return chosen


def write_predictions(
    output: Path,
    inputs: Iterable[PredictInput],
    model: LoadedModel,
    *,
    form: FileForm,
    top_k: int = 5,
    answering: Answering | None = None,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    resume: bool = False,
    progress: Callable[[int], object] | None = None,
    notify: Notify = warnings.warn,
) -> WrittenPredictions:
    """Write one line (`json`) or row (`csv`) for each input to `output`, as `predict` gives them.

    The file grows while the work goes on. With `resume` it is kept up to its last whole answer:
    the answers there must be those of the first inputs, and the last batch of them is computed
    again, to find out whether the model is the same and to go on with the same batches. Without
    it, the file is replaced. `progress` gets the number of answers so far.

    Raises:
        UsageError: `output` cannot be written, or holds something else than the same work.
        ResourceError: the disk is full; or a loader worker died or hung.
        RunLockedError: another process writes to `output`.
        InterruptedRunError, StoppedError: after a signal; the file can be resumed.
    """
    _check_output(output)
    inputs = iter(inputs)
    columns = min(top_k, len(model.classes))
    with lock_output(output):
        part = _Part()
        if resume and output.exists():
            part = _read_part(output, form, columns, inputs, batch_size)
        again = (each for each, _ in part.last_batch)
        answers = predict(
            chain(again, inputs),
            model,
            top_k=top_k,
            answering=answering,
            batch_size=batch_size,
            workers=workers,
            notify=notify,
        )
        _require_same_answers(output, part, answers)
        with _appending(output, part.end) as stream:
            _write_answers(output, stream, answers, part, form, columns, progress)
    return WrittenPredictions(part.count, part.failed)


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_file():
        kind = "a folder" if output.is_dir() else "not a regular file"
        raise UsageError(f"cannot write {output}: it is {kind}")
    if not output.parent.is_dir():
        raise UsageError(
            f"output {output}: its folder {output.parent} does not exist",
            f"create it with: mkdir -p {output.parent}",
        )


def _write_answers(
    output: Path,
    stream: BinaryIO,
    answers: Iterable[Prediction],
    part: _Part,
    form: FileForm,
    columns: int,
    progress: Callable[[int], object] | None,
) -> None:
    """Append the answers and count them in `part`."""
    flushed_at = time.monotonic()
    if form == "csv" and part.end == 0:
        stream.write(f"{format_csv_row(prediction_csv_header(columns))}\n".encode())
    for answer in answers:
        with _explained(output):
            stream.write(_encode(answer, form, columns))
            if time.monotonic() - flushed_at >= FLUSH_SECONDS:
                stream.flush()
                flushed_at = time.monotonic()
        part.count += 1
        part.failed += answer.error is not None
        if progress is not None:
            progress(part.count)


def _encode(answer: Prediction, form: FileForm, columns: int) -> bytes:
    if form == "json":
        return f"{format_json_line(prediction_json(answer))}\n".encode("ascii")
    row = format_csv_row(prediction_csv_row(answer, columns))
    return encode_text(f"{row}\n")


@contextmanager
def _appending(output: Path, end: int) -> Iterator[BinaryIO]:
    """The file, cut off at `end` bytes, for what is to follow."""
    with _explained(output):
        stream = output.open("ab")
    try:
        with _explained(output):
            stream.truncate(end)
        yield stream
    except KeyboardInterrupt as error:
        message = f"interrupted: {output} is not complete"
        raise build_stop_error(error, message, GO_ON) from error
    finally:
        with _explained(output):
            stream.close()


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explained = write_error(output, error)
        if explained.exit_code == ExitCode.RESOURCE:
            explained.hint = f"free some space, then {GO_ON}"
        raise explained from error


def _read_part(
    output: Path,
    form: FileForm,
    columns: int,
    inputs: Iterator[PredictInput],
    batch_size: int,
) -> _Part:
    """Compare the answers that are there with the inputs, which are used up as far."""
    part = _Part()
    last_batch: list[tuple[PredictInput, Prediction]] = []
    images = 0
    with output.open("rb") as stream:
        for before, part.end in _read_answers(output, stream, form, columns):
            if before is None:  # the header
                continue
            part.count += 1
            part.failed += before.error is not None
            each = next(inputs, None)
            if each is None or each.path != before.path:
                found = "there is no such input" if each is None else f"is {one_line(each.path)}"
                answers = f"answers {one_line(before.path)}, the input {found}"
                raise _other_work(output, part.count, answers)
            if each.error is None:
                if images == batch_size:
                    images = 0
                    last_batch.clear()
                images += 1
            last_batch.append((each, before))
    part.last_batch = tuple(last_batch)
    return part


def _require_same_answers(output: Path, part: _Part, answers: Iterator[Prediction]) -> None:
    first = part.count - len(part.last_batch)
    # The batch comes first: zip() then takes no answer more than it has.
    for number, ((_, before), now) in enumerate(
        zip(part.last_batch, answers, strict=False), first + 1
    ):
        if before.error is None and now.error is None and not _similar(before, now):
            raise _other_work(
                output, number, "holds other probabilities, or another answer, than now"
            )


def _similar(before: Prediction, now: Prediction) -> bool:
    old, new = (
        {escape_surrogates(each.name): each.probability for each in answer.predictions}
        for answer in (before, now)
    )
    fits = len(old) == len(new) and _agrees(old, new) and _agrees(new, old)
    return fits and before.rejected == now.rejected


def _agrees(some: dict[str, float], others: dict[str, float]) -> bool:
    """Whether the most probable classes of one answer fit those of another."""
    lowest = min(others.values())  # what is not among the others has at most this
    return all(
        abs(value - others[name]) <= TOLERANCE if name in others else value <= lowest + TOLERANCE
        for name, value in some.items()
    )


def _read_answers(
    output: Path, stream: BinaryIO, form: FileForm, columns: int
) -> Iterator[tuple[Prediction | None, int]]:
    """The whole answers of a file and where each ends; None for a header."""
    rows = _read_csv(stream) if form == "csv" else _read_json(stream)
    try:
        if form == "csv":
            header, end = next(rows, (None, 0))
            if header is None:
                return
            if header != prediction_csv_header(columns):
                raise UsageError(
                    f"cannot resume {output}: it has other columns than "
                    f"{format_csv_row(prediction_csv_header(columns))}",
                    "give the same --top-k and model, or start afresh without --resume",
                )
            yield None, end
        for value, end in rows:
            yield (_parse_row(value) if form == "csv" else _parse_line(value)), end
    # Lists within lists end JSON's recursion.
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, csv.Error) as error:
        raise UsageError(
            f"cannot resume {output}: it holds something else than predictions as {form}",
            "start afresh without --resume, which replaces it",
        ) from error


def _read_json(stream: BinaryIO) -> Iterator[tuple[Any, int]]:
    end = 0
    for line in stream:
        if not line.endswith(b"\n"):
            return  # cut off
        end += len(line)
        yield json.loads(line), end


def _read_csv(stream: BinaryIO) -> Iterator[tuple[list[str], int]]:
    end = 0

    def read_lines() -> Iterator[str]:
        nonlocal end
        for line in stream:
            if not line.endswith(b"\n"):
                return  # cut off
            end += len(line)
            yield line.decode("utf-8", "surrogateescape")

    try:
        for row in csv.reader(read_lines(), strict=True):
            yield row, end
    except csv.Error:
        if stream.read(1):
            raise
        # else cut off within quotes: a cell can hold line ends


def _parse_line(value: Any) -> Prediction:
    named = tuple(
        ClassProbability(_read_name(each["class"]), float(each["probability"]))
        for each in value["predictions"]
    )
    rejected = _read_rejected(value["rejected"])
    return Prediction(str(value["path"]), named, value["error"], rejected=rejected)


def _parse_row(cells: Sequence[str]) -> Prediction:
    path, status, *pairs, error, _answer, rejected, _distance = map(read_csv_cell, cells)
    if status == "error":
        return Prediction(path, error=error)
    named = tuple(
        ClassProbability(name, float(probability))
        for name, probability in zip(pairs[::2], pairs[1::2], strict=True)
    )
    return Prediction(path, named, rejected=_read_rejected(rejected or None))


def _read_name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _read_rejected(value: Any) -> Literal["confidence", "distance"] | None:
    if value not in (None, "confidence", "distance"):
        raise ValueError(value)
    found: Literal["confidence", "distance"] | None = value
    return found


def _other_work(output: Path, number: int, what: str) -> UsageError:
    return UsageError(
        f"cannot resume {output}: its answer {number:,} {what}",
        "give the same inputs, model and options, or start afresh without --resume",
    )
