"""A map of the images of a run: their features in two dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtrain.errors import ModelError, VtrainError
from vtrain.pages.charts import Dot, scatter_map
from vtrain.pages.report.section import Section
from vtrain.runs.evaluation_files import ImagePrediction, features_path
from vtrain.runs.record import RunRecord

MAX_MAP = 2000  # images on a map; more cannot be told apart
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Coordinates `[M, 2]` of images, rows of the predictions `[M]`, and the variance shown."""

    places: Floats
    rows: tuple[int, ...]
    explained: float


def project(features: NDArray[Any], rows: Sequence[int]) -> EmbeddingMap | None:
    """Project features `[M, D]` on their first two principal components.

    Rows that are not finite are left out; None where fewer than three differ.
    """
    values = np.asarray(features, dtype=np.float64)
    finite = np.isfinite(values.sum(axis=1))
    values = values[finite]
    if len(values) < 3 or values.shape[1] < 2:
        return None
    values = values - values.mean(axis=0)
    total = float((values**2).sum())
    if total <= 1e-12 * values.size:
        return None
    places, singular = principal_components(values)
    kept = tuple(int(row) for row, fine in zip(rows, finite, strict=True) if fine)
    return EmbeddingMap(places, kept, min(float((singular**2).sum()) / total, 1.0))


def principal_components(centred: Floats) -> tuple[Floats, Floats]:
    """The coordinates `[M, 2]` of centred rows `[M, D]`, and the two singular values.

    A whole SVD of 2,000 x 2,048 takes seconds; this one starts from the same random numbers each
    time. Signs are those that make the largest coordinate positive.
    """
    import torch  # a page without a map needs none

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` reaches GPUs as well
        left, singular, _ = torch.pca_lowrank(
            torch.from_numpy(centred), q=min(10, *centred.shape), center=False, niter=20
        )
    places = (left[:, :2] * singular[:2]).numpy()
    largest = np.abs(places).argmax(axis=0)
    places *= np.where(places[largest, [0, 1]] < 0, -1.0, 1.0)
    return places, singular[:2].numpy()


def read_map(path: Path) -> EmbeddingMap | None:
    """The map of the features in `features-<split>.safetensors`.

    Raises:
        ModelError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        features, rows = tensors["features"], tensors["rows"]
        if features.ndim != 2 or rows.shape != (len(features),):
            raise ValueError(f"shapes {features.shape} and {rows.shape} do not fit")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path.name} is damaged: {error!s:.200}") from error
    return project(features[:MAX_MAP], rows[:MAX_MAP].tolist())


def build_map(record: RunRecord, predictions: Sequence[ImagePrediction] | None) -> Section:
    """The map of the validation images, if their features are there."""

    def lacking(why: str) -> Section:
        return Section("map", "Map of the images", missing=[why])

    path = features_path(record.run_dir, "val")
    if not path.exists() or not predictions:
        return lacking("This run has no features of its validation images.")
    try:
        found = read_map(path)
    except VtrainError as error:
        return lacking(f"No map: {error.message}.")
    if found is None:
        return lacking("No map: the features of fewer than three images differ.")
    numbers = {name: number for number, name in enumerate(record.classes)}
    dots = [
        Dot(float(x), float(y), numbers.get(each.label, 0), each.correct)
        for (x, y), row in zip(found.places, found.rows, strict=True)
        if 0 <= row < len(predictions)
        for each in (predictions[row],)
    ]
    chart = scatter_map(
        "Validation images as the model sees them",
        dots,
        record.classes,
        note=f"Each mark is an image. The two directions are the first principal components "
        f"of the features (PCA), which hold {found.explained:.0%} of their variance; PCA does "
        "not know the labels, so groups on the map are groups of the features, and images "
        "that are apart here are apart. Near neighbours here may be far apart in the rest.",
    )
    return Section("map", "Map of the images", charts=[chart])
