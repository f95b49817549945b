"""The frozen lower part of a network, run once over the images; training goes on from what it gave.

The result is that of running it in every epoch: the frozen part has no randomness and does not
change, and an image without augmentation is the same every time. In float32 the last bits can
differ where it runs on another number of threads, see `choose_streams`.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from vtrain.config.preprocessing import Preprocessing
from vtrain.data.batches import SAMPLE_STREAM, Batch, require_readable
from vtrain.data.loaders import build_eval_loader
from vtrain.data.tars import find_status
from vtrain.data.transforms import ImageTransform, normalize_images
from vtrain.errors import DataError
from vtrain.inference.feature_store import (
    BlockWriter,
    FeatureStore,
    Identities,
    Rows,
    StoredRows,
    StoreError,
    identify_files,
    identify_views,
)
from vtrain.inference.forward import prepare_module
from vtrain.inference.streams import choose_streams, compute_in_order
from vtrain.models.classifier import PENULTIMATE, Classifier
from vtrain.models.precision import Precision
from vtrain.models.splitting import LowerPart
from vtrain.system.cache_folder import make_room
from vtrain.system.json_csv import to_plain
from vtrain.system.machine import find_version, mix_seed
from vtrain.system.processes import ALONE, Processes
from vtrain.system.reporter import Reporter
from vtrain.system.tensor_files import tensors_sha256
from vtrain.system.text import format_bytes, one_line

GIGABYTE = 10**9


@dataclass(frozen=True, slots=True)
class FrozenPart:
    """What lies below a boundary, ready to run.

    `compute` turns uint8 images `[B, 3, H, W]` into activations `[B, ...]` on the device; `facts`
    are all that these depend on besides the image; `row_bytes` is the size of one image's.
    """

    boundary: str
    module: nn.Module
    device: torch.device
    compute: Callable[[Tensor], Tensor]
    facts: dict[str, Any]
    row_bytes: int


def build_frozen_part(
    classifier: Classifier,
    boundary: str,
    *,
    preprocessing: Preprocessing,
    precision: Precision,
    device: torch.device,
) -> FrozenPart:
    """The part of `classifier` up to `boundary`, as a copy made for speed, and its fingerprint.

    Raises:
        BoundaryError: the network cannot be cut there.
    """
    lower = LowerPart(classifier, boundary)
    weights = tensors_sha256(lower.state_dict())
    module = prepare_module(lower, precision)

    @torch.no_grad()  # not inference mode, whose tensors the part above could not be trained on
    def compute(images: Tensor) -> Tensor:
        with precision.autocast():
            return module(normalize_images(images, preprocessing, device=device))  # type: ignore[no-any-return]

    edge = preprocessing.crop
    row = compute(torch.zeros(1, 3, edge, edge, dtype=torch.uint8))
    facts = {
        "format": 1,
        "backbone": classifier.spec.name,
        # GoogLeNet and Inception convert the normalisation only where they were built to.
        "transform_input": bool(getattr(classifier.backbone, "transform_input", False)),
        "layer": boundary,
        "weights_sha256": weights,
        "preprocessing": to_plain(preprocessing),
        "precision": precision.name,
        "device": device.type,
        "shape": list(row.shape[1:]),
        "dtype": str(row.dtype).removeprefix("torch."),
        "versions": {
            "vtrain": find_version("vtrain"),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
        },
    }
    return FrozenPart(boundary, module, device, compute, facts, row.nbytes)


@dataclass(frozen=True, slots=True)
class Views:
    """What the frozen part sees of each image: one deterministic view, or `count` random ones.

    `name` and `seed` say how random views are drawn.
    """

    transform: ImageTransform
    name: str = "none"
    count: int = 1
    seed: int | None = None

    def facts(self) -> dict[str, Any]:
        """What a view depends on besides the image and its number."""
        return {"augment": self.name, "seed": self.seed}

    def identify(self, paths: Sequence[Path]) -> Identities:
        """Identities `[N, count]`; see `identify_files`.

        Raises:
            DataError: an image is not there any more.
        """
        try:
            files = identify_files(paths)
        except OSError as error:
            path = one_line(error.filename)
            raise DataError(
                f"{path} was readable before training and is not now: {error.strerror}",
                "restore the file, then continue with --resume",
            ) from error
        return files[:, None] if self.seed is None else identify_views(files, self.count)


@dataclass(frozen=True, slots=True)
class FeatureCache:
    """Stores of activations below `root`, of at most `limit_gb` (10⁹ bytes) together.

    `processes` share the work and call `provide` together. `reporter`'s progress may
    raise to stop, also while another run computes the same. `used` are the stores of this run,
    which make no room for each other.
    """

    root: Path
    limit_gb: float
    batch_size: int
    workers: int
    reporter: Reporter
    label: str = "computing features"
    processes: Processes = ALONE
    used: set[Path] = field(default_factory=set)

    def fits(self, part: FrozenPart, count: int) -> bool:
        """Whether `count` activations, all that a run stores, stay below the limit."""
        return count * part.row_bytes <= self.limit_gb * GIGABYTE

    def count_missing(self, part: FrozenPart, paths: Sequence[Path], views: Views) -> int:
        """How many activations `provide` would have to compute; nothing is written.

        Raises:
            DataError: an image is not there any more.
        """
        identities = views.identify(paths)
        store = FeatureStore.peek(self.root, {**part.facts, "view": views.facts()})
        return int(identities.size) if store is None else len(_find_missing(store, identities))

    def provide(
        self,
        part: FrozenPart,
        paths: Sequence[Path],
        views: Views,
        *,
        ahead: Sequence[Path] = (),
    ) -> StoredRows | None:
        """The activations `[N, K]` of all views; those that are not stored yet are computed.

        So are those of the images `ahead`, in the same pass, for a call that will ask for them.
        None, after a warning, where the store cannot be written.

        Raises:
            DataError: an image cannot be read.
        """

        def find_path(image: int) -> Path:
            return paths[image] if image < len(paths) else ahead[image - len(paths)]

        try:
            with self._together():
                identities = np.concatenate([views.identify(each) for each in (paths, ahead)])
                store = self._open(part, views)
                missing = _find_missing(store, identities)
            # From here on some may write: all have seen the same rows missing.
            if self.processes.world_size > 1:
                with self._together():
                    share = np.array_split(missing, self.processes.world_size)[self.processes.rank]
                    self._build(store, part, find_path, views, identities, share)
            with self._together():
                store.refresh()
                # On machines that do not share the cache folder the others' shares are missing.
                if (store.find(identities) < 0).any():
                    self._build_alone(store, part, find_path, views, identities)
                return store.select(identities[: len(paths)])
        except StoreError as error:
            self.reporter.warn(
                f"feature cache: {error}; training without it: the same result, slower"
            )
            return None

    def provide_readable(
        self, part: FrozenPart, paths: Sequence[Path], views: Views
    ) -> tuple[StoredRows | None, dict[int, str]]:
        """As `provide`, of those images that can be read, in their order, by one process alone.

        Also gives the positions in `paths` of the others and the reasons; None without any rows.

        Raises:
            StoreError: the store cannot be written.
        """
        failures = {}
        for position, path in enumerate(paths):
            try:
                find_status(path)
            except OSError as error:
                failures[position] = error.strerror or str(error)
        there = [position for position in range(len(paths)) if position not in failures]
        identities = views.identify([paths[position] for position in there])
        store = self._open(part, views)
        unreadable: dict[bytes, str] = {}
        if len(_find_missing(store, identities)):
            self._build_alone(
                store, part, lambda image: paths[there[image]], views, identities, unreadable
            )
        stored = (store.find(identities) >= 0).all(axis=1)
        for place in np.flatnonzero(~stored).tolist():
            reasons = [unreadable[name] for name in identities[place] if name in unreadable]
            if not reasons:
                raise StoreError(f"rows that were written are not in {store.folder}")
            failures[there[place]] = reasons[0]
        return store.select(identities[stored]) if stored.any() else None, failures

    def _open(self, part: FrozenPart, views: Views) -> FeatureStore:
        facts = {**part.facts, "view": views.facts()}
        store = FeatureStore.open(self.root, facts, reporter=self.reporter)
        self.used.add(store.folder)
        return store

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A step that all processes take, and that fails in all of them if it fails in one.

        Raises:
            StoreError: that of the failed process with the lowest rank.
        """
        problem = None
        try:
            yield
        except StoreError as error:
            problem = str(error)
        for each in self.processes.gather(problem):
            if each:
                raise StoreError(each)

    def _build_alone(
        self,
        store: FeatureStore,
        part: FrozenPart,
        find_path: Callable[[int], Path],
        views: Views,
        identities: Identities,
        unreadable: dict[bytes, str] | None = None,
    ) -> None:
        """One process builds; another that wants the same rows waits and reads them."""

        def wait() -> None:
            with self.reporter.progress(0, "waiting for features") as bar:
                bar.update(0)  # may raise to stop

        with store.building(wait):
            missing = _find_missing(store, identities)
            self._build(store, part, find_path, views, identities, missing, unreadable)
        store.refresh()

    def _make_room(self, part: FrozenPart, count: int) -> None:
        limit = int(self.limit_gb * GIGABYTE)
        removed = make_room(self.root, needed=count * part.row_bytes, limit=limit, keep=self.used)
        if removed:
            size = sum(entry.size for entry in removed) / GIGABYTE
            self.reporter.say(
                f"feature cache: removed {len(removed)} older stores ({size:.2g} GB) to stay below "
                f"train.cache_limit ({self.limit_gb:g} GB)"
            )

    def _build(
        self,
        store: FeatureStore,
        part: FrozenPart,
        find_path: Callable[[int], Path],
        views: Views,
        identities: Identities,
        missing: Rows,
        unreadable: dict[bytes, str] | None = None,
    ) -> None:
        """Compute and store the (image, view) pairs `missing` `[M, 2]`.

        `unreadable` gets the identities that cannot be read and why; without it that is an error.
        """
        if not len(missing):
            return
        self._make_room(part, len(missing))
        wanted = [find_path(image) for image in missing[:, 0].tolist()]
        names = identities[missing[:, 0], missing[:, 1]]
        failures: dict[int, str] | None = None if unreadable is None else {}
        batches = self.compute(part, wanted, views, missing[:, 1], failures)
        writer = BlockWriter(store)
        with self.reporter.progress(len(wanted), self.label) as bar:
            try:
                for batch, rows in batches:
                    writer.add(names[batch.positions.numpy()], rows)
                    bar.update(int(batch.positions[-1]) + 1 - bar.n)
            except BaseException:
                with suppress(StoreError):
                    writer.flush()  # a resumed run goes on from here
                raise
            writer.flush()
        if unreadable is not None and failures:
            unreadable |= {bytes(names[place]): reason for place, reason in failures.items()}

    def compute(
        self,
        part: FrozenPart,
        paths: Sequence[Path],
        views: Views,
        numbers: NDArray[np.int64],
        failures: dict[int, str] | None = None,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Activations of view `numbers[i]` of the image at `paths[i]`, in batches, in order.

        `failures` gets positions and reasons of those that cannot be read, which are then in no
        batch; without it that is an error.

        Raises:
            DataError: an image cannot be read.
        """
        seeds = None
        if views.seed is not None:
            # The same for a copy of the images: of names, not of what `stat` says.
            names = ["/".join(path.parts[-2:]).encode("utf-8", "surrogateescape") for path in paths]
            seeds = [
                mix_seed(views.seed, SAMPLE_STREAM, zlib.crc32(name), view)
                for name, view in zip(names, numbers.tolist(), strict=True)
            ]
        loader = build_eval_loader(
            paths,
            None,
            views.transform,
            batch_size=self.batch_size,
            workers=self.workers,
            seeds=seeds,
            pin_memory=part.device.type == "cuda",
            reporter=self.reporter,
        )
        return compute_in_order(
            require_readable(loader, paths) if failures is None else _leave_out(loader, failures),
            lambda batch: part.compute(batch.inputs),
            streams=choose_streams(part.device),
        )


def _find_missing(store: FeatureStore, identities: Identities) -> Rows:
    """(image, view) `[M, 2]` of what is not stored; once, if it is asked for in two places."""
    missing = np.argwhere(store.find(identities) < 0)
    _, first = np.unique(identities[missing[:, 0], missing[:, 1]], return_index=True)
    return missing[np.sort(first)]


def _leave_out(batches: Iterable[Batch], failures: dict[int, str]) -> Iterator[Batch]:
    """The batches that hold an image, after taking note of what could not be read."""
    for batch in batches:
        failures.update(batch.failures)
        if len(batch):
            yield batch


def describe_size(part: FrozenPart, count: int) -> str:
    """What `count` activations are and take: `600 features, 1.2 MB`."""
    kind = "features" if part.boundary == PENULTIMATE else f"activations of {part.boundary}"
    return f"{count:,} {kind}, {format_bytes(count * part.row_bytes)}"
