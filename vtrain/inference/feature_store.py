"""Activations of a frozen network part: computed once for each image, shared between runs."""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from vtrain.data.batches import Batch
from vtrain.data.sampler import EpochBatchSampler
from vtrain.data.tars import find_status
from vtrain.errors import ModelError, VtrainError
from vtrain.system.cache_folder import FACTS_NAME
from vtrain.system.files import sweep_temporaries
from vtrain.system.json_csv import write_json
from vtrain.system.reporter import SILENT, Reporter
from vtrain.system.tensor_files import map_tensors, save_tensors

# Bytes of a digest that names one view of one file: 16 make a collision unthinkable.
IDENTITY_BYTES = 16
# Stored activations up to this size are held in memory, where a batch is one copy.
PRELOAD_BYTES = 256 * 2**20
# Rows of a block are written together: what a kill loses, and what a damaged byte costs.
BLOCK_ROWS = 1024
BLOCK_BYTES = 64 * 2**20
BLOCK_SECONDS = 30.0
# Local file systems stamp changes with the kernel's clock, which ticks every 10 ms or faster.
KERNEL_TICK_NS = 20_000_000
# Other machines may write here too: only what is as old as this has certainly been given up.
ABANDONED_SECONDS = 6 * 3600.0
_LOCK_NAME = "build.lock"
# How often a run that waits for another looks whether it shall stop.
_LOCK_SECONDS = 1.0

Identities = NDArray[np.bytes_]  # [...] of 16 bytes each
Rows = NDArray[np.int64]


def identify_files(paths: Sequence[Path]) -> Identities:
    """One identity `[N]` for each file as it is now: path, size, and times of change.

    The status-change time is among them, which programs cannot set: a file that was changed in any
    way gets another identity, also if its size and modification time were put back.

    Raises:
        OSError: a file is not there any more.
    """
    facts = []
    newest = 0
    for path in paths:
        status = find_status(path)
        newest = max(newest, status.st_ctime_ns)
        facts.append((str(path.absolute()), *status[2:]))  # a device's number may change
    # What changes again within one tick of the clock would keep its times: let that tick pass.
    wait = newest + KERNEL_TICK_NS - time.time_ns()
    time.sleep(min(max(wait, 0), KERNEL_TICK_NS) / 1e9)
    return np.array([_digest(each) for each in facts], dtype=f"S{IDENTITY_BYTES}")


def identify_views(files: Identities, views: int) -> Identities:
    """Identities `[N, views]` of several random views of each file."""
    rows = [[_digest((bytes(file), view)) for view in range(views)] for file in files.tolist()]
    return np.array(rows, dtype=f"S{IDENTITY_BYTES}").reshape(len(files), views)


def _digest(facts: tuple[object, ...]) -> bytes:
    text = repr(facts).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(text, digest_size=IDENTITY_BYTES).digest()
    return digest.replace(b"\0", b"\1")  # numpy drops zeros at the end


class StoreError(Exception):
    """The store cannot be written; the message says why."""


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except VtrainError as error:
        raise StoreError(error.message) from error
    except OSError as error:
        raise StoreError(f"cannot write {error.filename}: {error.strerror}") from error


class FeatureStore:
    """Blocks of rows in one folder; the folder's name is a digest of all that the rows depend on.

    A block is one safetensors file with `identities` uint8 `[n, 16]` and `activations` `[n, ...]`,
    written whole or not at all. A damaged block is removed, so that its rows are computed again.
    Among the `facts` are `shape` (a list) and `dtype` (such as `float32`) of one row.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        *,
        reporter: Reporter,
        read_only: bool = False,
    ) -> None:
        self.folder = folder
        self._row_shape, self._dtype = tuple(facts["shape"]), getattr(torch, facts["dtype"])
        self._reporter = reporter
        self._read_only = read_only
        self._blocks: dict[str, Tensor] = {}
        self._identities: dict[str, Identities] = {}

    @classmethod
    def open(cls, root: Path, facts: Mapping[str, Any], *, reporter: Reporter) -> "FeatureStore":
        """The store below `root` for rows that depend on `facts` (plain data), new or old.

        Raises:
            StoreError: the folder cannot be written.
        """
        folder = _find_folder(root, facts)
        try:
            with _store_errors():
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / FACTS_NAME, facts)  # its time says when it was last used
        except StoreError:
            if not (folder / FACTS_NAME).is_file():
                raise
            # What it holds can be read all the same.
        store = cls(folder, facts, reporter=reporter)
        store.refresh()
        return store

    @classmethod
    def peek(cls, root: Path, facts: Mapping[str, Any]) -> "FeatureStore | None":
        """As `open`, to look at what is there: nothing is written, and damage is passed over.

        None where there is no such store.
        """
        folder = _find_folder(root, facts)
        if not (folder / FACTS_NAME).is_file():
            return None
        store = cls(folder, facts, reporter=SILENT, read_only=True)
        with suppress(StoreError):
            store.refresh()
        return store

    def refresh(self) -> None:
        """Take in the blocks that were written since the last look."""
        for path in sorted(self.folder.glob("block-*.safetensors")):
            if path.name not in self._blocks:
                self._load(path)

    def _load(self, path: Path) -> None:
        try:
            identities, activations = self._read_block(path)
        except (ModelError, ValueError) as error:
            if self._read_only or not path.exists():
                return  # another process has removed it, or a run will compute it again
            if isinstance(error.__cause__, OSError):
                raise StoreError(f"cannot read {path}: {error.__cause__.strerror}") from error
            self._reporter.say(f"feature cache: a block is computed again: {error}")
            with suppress(OSError):
                path.unlink()
        else:
            self._blocks[path.name] = activations
            self._identities[path.name] = identities

    def _read_block(self, path: Path) -> tuple[Identities, Tensor]:
        tensors = map_tensors(path)
        if tensors.keys() != {"identities", "activations"}:
            raise ValueError(f"{path} holds {', '.join(sorted(tensors))}")
        packed, activations = tensors["identities"], tensors["activations"]
        if packed.dtype != torch.uint8 or packed.shape[1:] != (IDENTITY_BYTES,):
            raise ValueError(f"{path} holds identities {packed.dtype} {tuple(packed.shape)}")
        identities = np.frombuffer(packed.numpy().tobytes(), dtype=f"S{IDENTITY_BYTES}")
        found = (len(activations), tuple(activations.shape[1:]), activations.dtype)
        if found != (len(identities), self._row_shape, self._dtype):
            raise ValueError(f"{path} holds {activations.dtype} {tuple(activations.shape)}")
        return identities, activations

    def find(self, identities: Identities) -> Rows:
        """The row of each identity `[...]`, -1 where there is none; same shape."""
        if not self._identities:
            return np.full(identities.shape, -1, dtype=np.int64)
        known = np.concatenate(list(self._identities.values()))
        order = np.argsort(known, kind="stable")
        places = np.searchsorted(known, identities, sorter=order)
        rows = order[np.minimum(places, len(known) - 1)]
        return np.where(known[rows] == identities, rows, -1).astype(np.int64)

    def append(self, identities: Identities, activations: Tensor) -> None:
        """Write rows `[n, ...]` (on the CPU) as one block.

        Raises:
            StoreError: no space left, or the folder cannot be written.
        """
        name = f"block-{time.time_ns():020d}-{secrets.token_hex(4)}.safetensors"
        raw = np.frombuffer(identities.tobytes(), dtype=np.uint8)
        packed = torch.from_numpy(raw.reshape(-1, IDENTITY_BYTES).copy())
        path = self.folder / name
        with _store_errors():
            save_tensors(path, {"identities": packed, "activations": activations}, {})
        self._load(path)

    @contextmanager
    def building(self, on_wait: Callable[[], object]) -> Iterator[None]:
        """Hold the right to build; waits while another process has it, then knows its rows.

        `on_wait` is called again and again meanwhile, and may raise to stop.

        Raises:
            StoreError: the folder cannot be written.
        """
        lock = FileLock(self.folder / _LOCK_NAME)
        said = False
        while not lock.is_locked:
            with _store_errors(), suppress(Timeout):
                lock.acquire(timeout=_LOCK_SECONDS)
                continue
            if not said:
                self._reporter.say("waiting for another run that computes the same features")
            said = True
            on_wait()
        try:
            sweep_temporaries(self.folder, older_than=ABANDONED_SECONDS)
            self.refresh()
            yield
        finally:
            lock.release()

    def select(self, identities: Identities) -> "StoredRows":
        """The stored activations of images and views `[N, K]`.

        Raises:
            StoreError: some are not there.
        """
        rows = self.find(identities)
        if missing := int((rows < 0).sum()):
            raise StoreError(f"{missing:,} rows that were written are not in {self.folder}")
        return StoredRows(list(self._blocks.values()), rows)


def _find_folder(root: Path, facts: Mapping[str, Any]) -> Path:
    text = json.dumps(facts, sort_keys=True)
    return root / hashlib.sha256(text.encode()).hexdigest()[:32]


class StoredRows:
    """K views each of N images, by position; `row_shape` is that of one activation."""

    def __init__(self, blocks: Sequence[Tensor], rows: Rows) -> None:
        self._blocks = blocks
        self._starts = np.cumsum([0, *(len(block) for block in blocks)])
        self._rows = rows
        self.views = rows.shape[1]
        self.row_shape = tuple(blocks[0].shape[1:])
        self._loaded: Tensor | None = None
        row_bytes = blocks[0][:1].nbytes
        if rows.size * row_bytes <= PRELOAD_BYTES:
            self._loaded = self._read(rows.reshape(-1))

    def __len__(self) -> int:
        return len(self._rows)

    def to(self, device: torch.device) -> None:
        """Hold the rows on `device`, if they are held in memory at all."""
        if self._loaded is not None:
            self._loaded = self._loaded.to(device)

    def gather(self, positions: Sequence[int], views: Sequence[int]) -> Tensor:
        """Activations `[B, ...]` of the given views of the images at `positions`."""
        if self._loaded is not None:
            places = torch.tensor(positions) * self.views + torch.tensor(views)
            return self._loaded[places.to(self._loaded.device)]
        return self._read(self._rows[list(positions), list(views)])

    def _read(self, rows: Rows) -> Tensor:
        first = self._blocks[0]
        out = torch.empty(len(rows), *self.row_shape, dtype=first.dtype)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            inner = torch.from_numpy(rows[places] - self._starts[number])
            out[torch.from_numpy(places)] = self._blocks[number][inner]
        return out


class BlockWriter:
    """Gathers rows and appends them to a store as blocks of a size that is worth a file."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._identities: list[Identities] = []
        self._activations: list[Tensor] = []
        self._since = time.monotonic()

    def add(self, identities: Identities, activations: Tensor) -> None:
        """Add rows `[n, ...]`; writes a block when there is enough for one."""
        self._identities.append(identities)
        self._activations.append(activations.cpu())
        rows = sum(map(len, self._identities))
        size = sum(each.nbytes for each in self._activations)
        waited = time.monotonic() - self._since
        if rows >= BLOCK_ROWS or size >= BLOCK_BYTES or waited >= BLOCK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has been added."""
        identities, activations = self._identities, self._activations
        self._identities, self._activations = [], []  # what cannot be written is not tried again
        if identities:
            self._store.append(np.concatenate(identities), torch.cat(activations))
        self._since = time.monotonic()


class FeatureLoader:
    """Batches of stored activations in the order of a sampler, as a loader of images gives them.

    Which of an image's views an epoch sees follows from the seed that its augmentation would have.
    """

    def __init__(self, rows: StoredRows, labels: Sequence[int], sampler: EpochBatchSampler) -> None:
        self._rows = rows
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self._sampler = sampler

    def __iter__(self) -> Iterator[Batch]:
        for keys in self._sampler:
            positions = [index for index, _ in keys]
            views = [cast(int, seed) % self._rows.views for _, seed in keys]
            yield _take(self._rows, self._labels, positions, views)


def iterate_rows(
    rows: StoredRows, labels: Sequence[int], share: range, batch_size: int
) -> Iterator[Batch]:
    """The first view of each image at the positions `share`, in order, in batches."""
    all_labels = torch.tensor(labels, dtype=torch.int64)
    for start in range(share.start, share.stop, batch_size):
        positions = list(range(start, min(start + batch_size, share.stop)))
        yield _take(rows, all_labels, positions, [0] * len(positions))


def _take(rows: StoredRows, labels: Tensor, positions: list[int], views: list[int]) -> Batch:
    index = torch.tensor(positions, dtype=torch.int64)
    return Batch(rows.gather(positions, views), labels[index], index)
