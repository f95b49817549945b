"""The nearest images in an array of features that `embed` wrote."""

import csv
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from vtrain.data.images import read_image
from vtrain.data.tars import find_status
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, ImageError, ModelError, UsageError
from vtrain.inference.forward import NOT_FINITE, compute_outputs, find_model_device
from vtrain.results.embed import MAX_FACTS_BYTES, digest_weights, facts_path
from vtrain.runs.model_argument import LoadedModel, load_model
from vtrain.system.json_csv import SCHEMA, read_csv_cell, to_plain
from vtrain.system.reporter import Reporter
from vtrain.system.text import one_line

Metric = Literal["cosine", "euclidean"]
Vector = NDArray[np.float32]

BLOCK_BYTES = 2**24  # of the array, read at a time
HINT = "name an array that `vtrain embed` wrote, with its .csv beside it"


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A row of the array; `value` is its cosine similarity (-1 to 1) or euclidean distance."""

    rank: int
    row: int
    path: Path
    value: float


@dataclass(frozen=True, slots=True)
class NeighborResult:
    """The rows nearest to a query, the nearest first.

    `query` is the image asked for; `row` its own row, which is left out of `neighbors`, or None if
    it is not in the array. `count` rows were compared, `left_out` hold no features.
    """

    query: Path
    row: int | None
    metric: Metric
    neighbors: tuple[Neighbor, ...]
    count: int
    left_out: int


@dataclass(frozen=True, slots=True)
class EmbeddingFacts:
    """What the `.json` beside an array says of the features in it."""

    model: str
    weights: str
    layer: str
    precision: str
    preprocessing: dict[str, Any]


def find_neighbors(
    query: str,
    embeddings: Path,
    *,
    model: str | None = None,
    k: int = 10,
    metric: Metric = "cosine",
    layer: str | None = None,
    device: torch.device,
    precision: str = "auto",
    reporter: Reporter,
) -> NeighborResult:
    """The k images of an array whose features are nearest to those of a query.

    The array is read once in blocks, so that the memory needed does not grow with it. Rows
    without features are left out.

    Args:
        query: a path that is in the array's index, the number of a row, or an image file. Only
            the last one needs a model.
        embeddings: `.npy` file of `embed`, float32 `[N, D]`; the `.csv` with the paths, and the
            `.json` that says which model it was made with, are beside it.
        model: as for `load_model`; None: the one that the array was made with.
        k: how many are given, at most.
        metric: `cosine` similarity, or `euclidean` distance.
        layer: what `embed` was told; None: what the `.json` says, else `penultimate`.
        device: where the query's features are computed.
        precision: as for `load_model`; `auto`: that of the array.
        reporter: is told of the model, and what could not be made sure of.

    Raises:
        UsageError: no such array, row, or layer.
        DataError: the array or its index is damaged, or the image cannot be read.
        ModelError: the array was made with another model, or nothing says with which.
    """
    with _open_array(embeddings) as array:
        row = _find_row(query, array)
        if row is not None:
            path, vector = array.find_paths([row])[row], array.read(row, 1)[0]
            if not np.isfinite(vector).all():
                raise DataError(
                    f"row {row} of {embeddings}, {one_line(path)}, holds no features",
                    "its line in the .csv says why",
                )
        else:
            path = Path(query)
            image_model = _load_model(array, model, layer, device, precision, reporter)
            vector = _compute_query(path, *image_model, array)
        best, left_out = _scan(array, vector, metric, k, row, reporter)
        paths = array.find_paths(each for each, _ in best)
    if paths and not any(map(_is_there, paths.values())):
        reporter.warn(
            f"no file is at any of these paths: {one_line(array.index)} has them as they were for "
            "`vtrain embed`, in the folder that it ran in"
        )
    neighbors = tuple(
        Neighbor(rank, each, paths[each], value) for rank, (each, value) in enumerate(best, 1)
    )
    return NeighborResult(path, row, metric, neighbors, array.count - left_out, left_out)


@dataclass(frozen=True, slots=True)
class _Embeddings:
    """An array of features `[count, dim]` on disk, read in blocks, and the paths of its rows."""

    path: Path
    stream: BinaryIO
    start: int
    count: int
    dim: int

    @property
    def index(self) -> Path:
        return self.path.with_suffix(".csv")

    def read(self, first: int, count: int) -> Vector:
        """Rows from `first` on, `[n, D]`."""
        self.stream.seek(self.start + 4 * self.dim * first)
        count = min(count, self.count - first)
        values = np.fromfile(self.stream, dtype="<f4", count=count * self.dim)
        if len(values) < count * self.dim:
            raise DataError(f"{one_line(self.path)} ends too soon", "make it again")
        return values.reshape(count, self.dim)

    def rows(self) -> Iterator[tuple[int, str]]:
        """Row number and path of each line of the index.

        Raises:
            DataError: it is missing or damaged, or has more or fewer rows than the array.
        """
        row = -1
        try:
            with self.index.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                for row, line in enumerate(csv.DictReader(stream)):
                    if line["row"] != str(row):
                        raise ValueError(f"line {row + 2} is not that of row {row}")
                    yield row, read_csv_cell(line["path"])
        except FileNotFoundError as error:
            raise DataError(f"{one_line(self.index)} is missing", HINT) from error
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise DataError(f"{one_line(self.index)} is damaged: {error!s:.200}", HINT) from error
        if row + 1 != self.count:
            raise DataError(
                f"{one_line(self.index)} has {row + 1:,} rows, {one_line(self.path)} has "
                f"{self.count:,}: they are not of one `vtrain embed`",
                "make them again",
            )

    def find_paths(self, rows: Iterable[int]) -> dict[int, Path]:
        wanted = set(rows)
        return {row: Path(path) for row, path in self.rows() if row in wanted}


def _is_there(path: Path) -> bool:
    try:
        find_status(path)
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _open_array(path: Path) -> Iterator[_Embeddings]:
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"embeddings {one_line(path)}: it {reason}", HINT)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise DataError(f"{one_line(path)} is no array: {reason:.200}", HINT) from error
    if not isinstance(array, np.memmap) or array.ndim != 2 or array.dtype != np.dtype("<f4"):
        found = f"{getattr(array, 'dtype', 'several arrays')} {getattr(array, 'shape', '')}"
        hint = "make it without --feature-maps" if getattr(array, "ndim", 0) == 4 else HINT
        raise DataError(f"{one_line(path)} holds {found}, expected float32 [N, D]", hint)
    count, dim = array.shape
    start, ordered = array.offset, array.flags.c_contiguous
    del array
    if not ordered or not count or not dim:
        raise DataError(f"{one_line(path)} has shape ({count}, {dim}) in another order", HINT)
    with path.open("rb") as stream:
        yield _Embeddings(path, stream, start, count, dim)


def _find_row(query: str, array: _Embeddings) -> int | None:
    """The row that a query names, None for an image that is not in the array."""
    number = query.removeprefix("-")
    if number.isascii() and number.isdigit():
        row = int(query)
        if not 0 <= row < array.count:
            raise UsageError(
                f"no row {query} in {array.path}: it has {array.count:,}, from 0 on",
                f"an image of that name is ./{query}",
            )
        return row
    found = [row for row, text in array.rows() if text == query]
    if found:
        return found[0]
    try:
        is_file = Path(query).is_file()
    except (OSError, ValueError):  # no name that a file can have
        is_file = False
    if not is_file:
        raise UsageError(
            f"query {one_line(query)} is no image file, no row number, and not in {array.index}",
            "give the path of an image, a path as the .csv has it, or a row number",
        )
    same = Path(query).resolve()
    for row, text in array.rows():
        if Path(text).name == same.name and Path(text).resolve() == same:
            return row
    return None


# --- the query's features ------------------------------------------------------------------------


def read_facts(embeddings: Path) -> EmbeddingFacts | None:
    """What the `.json` beside an array says, None where it is missing.

    Raises:
        DataError: it is damaged.
    """
    path = facts_path(embeddings)
    try:
        if path.stat().st_size > MAX_FACTS_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(EmbeddingFacts).validate_python(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise DataError(
            f"{one_line(path)} is damaged: {reason:.200}", "embed the images again"
        ) from error


def _load_model(
    array: _Embeddings,
    model: str | None,
    layer: str | None,
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> tuple[LoadedModel, str]:
    """The model that the array was made with, and the layer."""
    facts = read_facts(array.path)
    if facts is None:
        if model is None:
            raise ModelError(
                f"nothing says which model {array.path} was made with: {facts_path(array.path)} "
                "is missing",
                "name the model: -m MODEL; or embed the images again",
            )
        reporter.warn(
            f"{facts_path(array.path)} is missing: nothing says whether {array.path} was made "
            "with this model and layer"
        )
        return load_model(model, device=device, precision=precision, reporter=reporter), (
            layer or "penultimate"
        )
    if layer is not None and layer != facts.layer:
        raise UsageError(
            f"{array.path} holds features of layer {facts.layer}, not {layer}",
            "leave --layer out",
        )
    asked = facts.precision if precision == "auto" else precision
    try:
        loaded = load_model(model or facts.model, device=device, precision=asked, reporter=reporter)
    except ModelError as error:
        if model is not None:
            raise
        raise ModelError(
            f"{array.path} was made with {one_line(facts.model)}, which cannot be used from here: "
            f"{error.message}",
            "say where that model is now: -m MODEL",
        ) from error
    _require_same(loaded, facts, array, reporter)
    return loaded, facts.layer


def _require_same(
    model: LoadedModel, facts: EmbeddingFacts, array: _Embeddings, reporter: Reporter
) -> None:
    if to_plain(model.preprocessing) != facts.preprocessing:
        what = "other preprocessing"
    elif model.precision != facts.precision:
        # Weights are stored in the precision that they compute in: their digests differ.
        reporter.warn(f"{array.path} was made in {facts.precision}, the query in {model.precision}")
        return
    elif digest_weights(model) != facts.weights:
        what = "other weights"
    else:
        return
    raise ModelError(
        f"{array.path} was made with {one_line(facts.model)} with {what} than "
        f"{one_line(model.source)} has now",
        "name the model that it was made with, or embed the images again",
    )


def _compute_query(path: Path, model: LoadedModel, layer: str, array: _Embeddings) -> Vector:
    transform = EvalTransform(model.preprocessing)
    try:
        image = read_image(path, min_edge=transform.resize, background=transform.background)
    except ImageError as error:
        raise DataError(f"cannot read {one_line(path)}: {error.message}") from error
    device = find_model_device(model.classifier)
    features = compute_outputs(
        lambda images: model.classifier.forward_layer(images, layer),
        transform(image)[None],
        model.preprocessing,
        device,
    )
    vector: Vector = features[0].cpu().numpy()
    if len(vector) != array.dim:
        raise ModelError(
            f"{model.source} gives {len(vector)} features of layer {layer}, {array.path} has "
            f"{array.dim}",
            "name the model, and --layer, that it was made with",
        )
    if not np.isfinite(vector).all():
        raise ModelError(f"{one_line(path)}: {NOT_FINITE}")
    return vector


# --- the scan ------------------------------------------------------------------------------------


def _scan(
    array: _Embeddings,
    query: Vector,
    metric: Metric,
    k: int,
    own: int | None,
    reporter: Reporter,
) -> tuple[list[tuple[int, float]], int]:
    """Row and value of the k nearest rows, the nearest first; how many rows hold no features."""
    best_rows = np.empty(0, dtype=np.int64)
    best = np.empty(0, dtype=np.float64)  # the larger, the nearer
    left_out = 0
    size = max(1, BLOCK_BYTES // (4 * array.dim))
    with reporter.progress(array.count, "comparing") as bar:
        for first in range(0, array.count, size):
            block = array.read(first, size)
            nearness = measure_nearness(block, query, metric)
            missing = np.isnan(nearness)
            left_out += int(missing.sum())
            if own is not None and first <= own < first + len(block):
                missing[own - first] = True
            rows = np.flatnonzero(~missing)
            best_rows = np.concatenate([best_rows, first + rows])
            best = np.concatenate([best, nearness[rows]])
            order = np.lexsort((best_rows, -best))[:k]
            best_rows, best = best_rows[order], best[order]
            bar.update(len(block))
    values = best if metric == "cosine" else -best
    return list(zip(best_rows.tolist(), values.tolist(), strict=True)), left_out


def measure_nearness(rows: Vector, query: Vector, metric: Metric) -> NDArray[np.float64]:
    """How near rows `[n, D]` are to a query `[D]`, `[n]`, NaN where a row is not finite.

    The cosine similarity, 0 where one of the two is zero everywhere; or minus the euclidean
    distance.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if metric == "euclidean":
            difference = rows - query
            squares = np.einsum("nd,nd->n", difference, difference, dtype=np.float64)
            distances: NDArray[np.float64] = np.sqrt(squares)
            return -distances
        lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        products = (rows @ query).astype(np.float64)
        lengths = lengths * math.sqrt(float(query.astype(np.float64) @ query))
        similarity = np.divide(products, lengths, out=np.zeros_like(products), where=lengths != 0)
    similarity[~np.isfinite(lengths)] = np.nan
    clipped: NDArray[np.float64] = np.clip(similarity, -1.0, 1.0)
    return clipped


def neighbors_json(result: NeighborResult) -> dict[str, Any]:
    """What `--json` prints."""
    return {"schema": SCHEMA, **to_plain(result)}
