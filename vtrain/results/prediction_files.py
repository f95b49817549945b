"""Predictions written to a file piece by piece; one that was cut off can be gone on with."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import TypeAdapter

from vtrain.errors import ExitCode, UsageError
from vtrain.models.freezing import tensor_digest
from vtrain.results.embed import digest_weights
from vtrain.results.inputs import FoundInputs, PredictInput
from vtrain.results.predict import (
    Answering,
    Prediction,
    predict,
    prediction_csv_header,
    prediction_csv_row,
    prediction_json,
)
from vtrain.results.resumable_array import lock_output, require_writable
from vtrain.runs.folder import find_changes
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.files import encode_text, write_error
from vtrain.system.json_csv import (
    format_csv_row,
    format_json_line,
    read_csv_cell,
    to_plain,
    write_json,
)
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.signals import build_stop_error
from vtrain.system.text import one_line

FileForm = Literal["json", "csv"]
GO_ON = "go on with the same command and --resume"
AFRESH = "remove it and start afresh without --resume"
SAME = f"give the same inputs, model and options, or {AFRESH}"
SUFFIXES: dict[str, FileForm] = {".jsonl": "json", ".csv": "csv"}


@dataclass(slots=True)
class WrittenPredictions:
    """What a file of predictions holds: inputs that were answered, and how many with an error.

    `end` is where the answers end, in bytes, of a file that is gone on with.
    """

    count: int = 0
    failed: int = 0
    end: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class _Origin:
    """What the answers of a file depend on besides the inputs; the content of its sidecar.

    `model` is a name, which may be another one for the same `model_digest`.
    """

    model: str
    model_digest: str
    form: FileForm
    top_k: int
    raw: bool
    tta: bool
    min_confidence: float | None
    max_distance: float | None


def sidecar_path(output: Path) -> Path:
    """Where it stands what the answers of a file are of."""
    return output.with_name(f"{output.name}.vtrain.json")


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


def require_new(output: Path) -> None:
    """Refuse a file that holds anything.

    Raises:
        UsageError: it does.
    """
    if output.exists() and output.stat().st_size:
        raise UsageError(
            f"output {one_line(output)} exists already",
            "go on after its last answer with --resume, or choose another name with -o",
        )


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
    reporter: Reporter = SILENT,
) -> WrittenPredictions:
    """Write one line (`json`) or row (`csv`) for each input to `output`, as `predict` gives them.

    The file grows while the work goes on; the sidecar beside it says which model and options its
    answers are of, and stays. With `resume` the file is kept up to the end of its last whole batch,
    so that those to come hold the same images as without a stop; its answers must be those of the
    first inputs, by the same model and options. Without it, a file that holds anything is refused.

    Raises:
        UsageError: `output` cannot be written, or holds something else than the same work.
        ResourceError: the disk is full; or a loader worker died or hung.
        RunLockedError: another process writes to `output`.
        InterruptedRunError, StoppedError: after a signal; the file can be resumed.
    """
    require_writable(output)
    found = inputs if isinstance(inputs, FoundInputs) else None
    inputs = iter(inputs)
    columns = min(top_k, len(model.classes))
    answering = answering or Answering()
    origin = _Origin(model.source, _digest_model(model), form, columns, **asdict(answering))
    with lock_output(output):
        part, again = WrittenPredictions(), list[PredictInput]()
        if not resume:
            require_new(output)
        if resume and output.exists() and output.stat().st_size:
            _require_same_origin(output, origin)
            part, again = _find_part(output, form, columns, inputs, batch_size)
        answers = predict(
            chain(again, inputs if found is None else found.pausing()),
            model,
            top_k=top_k,
            answering=answering,
            batch_size=batch_size,
            workers=workers,
            reporter=reporter,
        )
        # Inputs that cannot be used at all are refused before there is a file.
        answers = chain(list(islice(answers, 1)), answers)
        with (
            reporter.progress(0, "predicting") as bar,
            _appending(output, part.end) as stream,
        ):
            if part.end == 0:
                # Only now that no earlier answer is left, which would seem to be of this origin.
                facts = {"schema": 1, "vtrain predict": output.name, **asdict(origin)}
                write_json(sidecar_path(output), facts)
            bar.update(part.count)
            for _ in _write_answers(output, stream, answers, part, form, columns):
                bar.total = None if found is None else found.known
                bar.update(1)
    return part


def _write_answers(
    output: Path,
    stream: BinaryIO,
    answers: Iterable[Prediction],
    part: WrittenPredictions,
    form: FileForm,
    columns: int,
) -> Iterator[None]:
    """Append the answers and count them in `part`; yields after each."""
    if form == "csv" and part.end == 0:
        stream.write(f"{format_csv_row(prediction_csv_header(columns))}\n".encode())
    for answer in answers:
        with _explained(output):
            stream.write(_encode(answer, form, columns))
            stream.flush()  # somebody may wait for it
        part.count += 1
        part.failed += answer.error is not None
        yield


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


def _digest_model(model: LoadedModel) -> str:
    """SHA-256 of all in a model that its answers come from."""
    novelty = model.novelty
    bank = novelty and (tensor_digest(novelty.bank), novelty.neighbors, novelty.threshold)
    parts = (to_plain(model.preprocessing), model.precision, model.temperature, model.classes, bank)
    return hashlib.sha256(f"{digest_weights(model)} {json.dumps(parts)}".encode()).hexdigest()


def _require_same_origin(output: Path, origin: _Origin) -> None:
    path = sidecar_path(output)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        before = TypeAdapter(_Origin).validate_python(content)
    except (OSError, ValueError, RecursionError) as error:
        found = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise UsageError(
            f"cannot resume {output}: {path.name}, which says what its answers are of, {found}",
            f"choose another output, or {AFRESH}",
        ) from error
    changes = find_changes(asdict(before), asdict(origin))
    if any(change.name != "model" for change in changes):
        listed = "\n".join(f"  {change}" for change in changes)
        raise UsageError(f"cannot resume {output}: it is of other work:\n{listed}", SAME)


def _find_part(
    output: Path, form: FileForm, columns: int, inputs: Iterator[PredictInput], batch_size: int
) -> tuple[WrittenPredictions, list[PredictInput]]:
    """What is kept of a file, and the inputs taken that have no answer in that.

    All of it if that answers all inputs, else what comes before the first batch that is not whole.
    """
    part, kept = WrittenPredictions(), WrittenPredictions()
    again: list[PredictInput] = []
    images = 0
    with output.open("rb") as stream:
        try:
            for path, status, part.end in _read_answers(stream, form, columns):
                part.count += 1
                part.failed += status == "error"
                each = next(inputs, None)
                if each is None or each.path != path:
                    raise _other_work(output, part.count, path, each)
                again.append(each)
                images += each.error is None
                if images % batch_size == 0:
                    kept, again = replace(part), []
        # Lists within lists end JSON's recursion.
        except (ValueError, TypeError, KeyError, RecursionError, csv.Error) as error:
            raise UsageError(
                f"cannot resume {output}: it holds something else than predictions as {form}",
                f"choose another output, or {AFRESH}",
            ) from error
    following = next(inputs, None)
    return (part, []) if following is None else (kept, [*again, following])


def _read_answers(stream: BinaryIO, form: FileForm, columns: int) -> Iterator[tuple[str, str, int]]:
    """Path and status of each whole answer of a file, and where it ends, in bytes."""
    end = 0

    def read_lines() -> Iterator[str]:
        nonlocal end
        for line in stream:
            if not line.endswith(b"\n"):
                return  # cut off
            end += len(line)
            yield line.decode("utf-8", "surrogateescape")

    if form == "json":
        for answer in map(json.loads, read_lines()):
            yield answer["path"], answer["status"], end
        return
    try:
        header, rows = prediction_csv_header(columns), csv.reader(read_lines(), strict=True)
        if next(rows, header) != header:
            raise ValueError("another header")
        for path, status, *_ in rows:
            yield read_csv_cell(path), status, end
    except csv.Error:
        if stream.read(1):
            raise
        # else cut off within quotes: a cell can hold line ends


def _other_work(output: Path, number: int, path: str, each: PredictInput | None) -> UsageError:
    found = "there is no such input" if each is None else f"the input is {one_line(each.path)}"
    return UsageError(
        f"cannot resume {output}: its answer {number:,} answers {one_line(path)}, {found}", SAME
    )
