"""Penultimate features of images by a model, kept where the next call finds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vtrain.data.batches import Failure
from vtrain.data.transforms import EvalTransform
from vtrain.data.workers import resolve_workers
from vtrain.inference.feature_cache import FeatureCache, FrozenPart, Views, build_frozen_part
from vtrain.inference.feature_store import StoreError
from vtrain.inference.forward import NOT_FINITE, find_model_device
from vtrain.models.classifier import PENULTIMATE
from vtrain.models.precision import Precision
from vtrain.runs.model_argument import LoadedModel
from vtrain.system.cache_folder import FEATURES, find_cache_folder
from vtrain.system.reporter import Reporter

CACHE_LIMIT_GB = 20.0  # of all stored features together, as `train.cache_limit`'s default


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of those images of a list that could be used.

    `values` is float32 `[M, D]`, finite; `positions` int64 `[M]`, rising, says which of the N
    images a row belongs to; `failures` are position and reason of the N - M others, rising.
    """

    values: NDArray[np.float32]
    positions: NDArray[np.int64]
    failures: tuple[Failure, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)


def compute_features(
    paths: Sequence[Path],
    model: LoadedModel,
    *,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    cache_limit_gb: float = CACHE_LIMIT_GB,
    reporter: Reporter,
    label: str = "computing features",
) -> Features:
    """What the last layer of a model sees of each image: `Classifier.forward_features`.

    They are stored in the cache folder, so that those of an image that has not changed since are
    only read. Where the store cannot be written they are computed all the same, after a warning;
    where they exceed `cache_limit_gb` (10⁹ bytes), after a word. `label` names the progress.

    Raises:
        ResourceError: a loader worker died or hung.
    """
    device = find_model_device(model.classifier)
    part = build_frozen_part(
        model.classifier,
        PENULTIMATE,
        preprocessing=model.preprocessing,
        precision=Precision(model.precision, device),
        device=device,
    )
    cache = FeatureCache(
        root=find_cache_folder() / FEATURES,
        limit_gb=cache_limit_gb,
        batch_size=batch_size,
        workers=resolve_workers(workers, len(paths)),
        reporter=reporter,
        label=label,
    )
    views = Views(EvalTransform(model.preprocessing))
    found = None
    if not cache.fits(part, len(paths)):
        reporter.say(
            f"feature cache: not used: {len(paths):,} features exceed {cache_limit_gb:g} GB"
        )
    else:
        try:
            found = _look_up(paths, part, cache, views)
        except StoreError as error:
            reporter.warn(
                f"feature cache: {error}; computing without it: the same result, kept nowhere"
            )
    return _gather(len(paths), *(found or _compute(paths, part, cache, views)))


def _look_up(
    paths: Sequence[Path], part: FrozenPart, cache: FeatureCache, views: Views
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """Features of the images that can be read, and why the others have none."""
    rows, failures = cache.provide_readable(part, paths, views)
    if rows is None:
        return np.empty((0, *part.facts["shape"]), dtype=np.float32), failures
    values = rows.gather(range(len(rows)), [0] * len(rows))
    return values.float().cpu().numpy(), failures


def _compute(
    paths: Sequence[Path], part: FrozenPart, cache: FeatureCache, views: Views
) -> tuple[NDArray[np.float32], dict[int, str]]:
    """As `_look_up`, with nothing but the images."""
    failures: dict[int, str] = {}
    blocks = [np.empty((0, *part.facts["shape"]), dtype=np.float32)]
    with cache.reporter.progress(len(paths), cache.label) as bar:
        numbers = np.zeros(len(paths), dtype=np.int64)
        for batch, rows in cache.compute(part, paths, views, numbers, failures):
            blocks.append(rows.float().cpu().numpy())
            bar.update(int(batch.positions[-1]) + 1 - bar.n)
    return np.concatenate(blocks), failures


def _gather(count: int, values: NDArray[np.float32], failures: dict[int, str]) -> Features:
    """Features of `count` images, of which those in `failures` have no row in `values`."""
    readable = np.ones(count, dtype=bool)
    readable[list(failures)] = False
    positions = np.flatnonzero(readable)
    finite = np.isfinite(values).all(axis=1)
    failures |= dict.fromkeys(positions[~finite].tolist(), NOT_FINITE)
    if not finite.all():
        values, positions = values[finite], positions[finite]
    return Features(values, positions, tuple(sorted(failures.items())))
