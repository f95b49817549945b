"""The store of activations: what is written comes back, damage never does."""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor

from tests.helpers.told import Told
from vtrain.data.sampler import EpochBatchSampler
from vtrain.inference import feature_store
from vtrain.inference.feature_store import (
    BlockWriter,
    FeatureLoader,
    FeatureStore,
    Identities,
    StoreError,
    identify_files,
    identify_views,
    iterate_rows,
)
from vtrain.system.reporter import SILENT
from vtrain.system.tensor_files import save_tensors

SHAPE = (3, 2)


def open_store(
    root: Path,
    said: list[str] | None = None,
    *,
    dtype: str = "float32",
    shape: Sequence[int] = SHAPE,
) -> FeatureStore:
    return FeatureStore.open(root, {"shape": list(shape), "dtype": dtype}, reporter=Told(said))


def name_rows(count: int, *, start: int = 0) -> Identities:
    """Identities `[count]`, the same for the same numbers."""
    return identify_views(np.array([b"file"], dtype="S16"), start + count)[0, start:]


def draw_rows(count: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *SHAPE, generator=generator).to(dtype)


def find_blocks(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("block-*.safetensors"))


def ignore() -> None:
    pass


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", [10**9, 0], ids=["in memory", "from the files"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_come_back_in_any_order_from_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, preload: int
) -> None:
    monkeypatch.setattr(feature_store, "PRELOAD_BYTES", preload)
    names, rows = name_rows(20), draw_rows(20, dtype=getattr(torch, dtype))
    writer = open_store(tmp_path, dtype=dtype)
    for first, last in ((12, 20), (0, 5), (5, 12)):
        writer.append(names[first:last], rows[first:last])
    for store in (writer, open_store(tmp_path, dtype=dtype)):
        # 6 images with 3 views each, and two rows that nobody asks for.
        order = np.random.default_rng(1).permutation(20)[:18].reshape(6, 3)
        stored = store.select(names[order])
        assert (len(stored), stored.views, stored.row_shape) == (6, 3, SHAPE)
        stored.to(torch.device("cpu"))
        positions, views = [5, 0, 3, 3, 5], [2, 0, 1, 1, 0]
        got = stored.gather(positions, views)
        assert got.dtype == rows.dtype
        assert torch.equal(got, rows[order[positions, views]])


def test_what_is_not_there_has_no_row(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.find(name_rows(3)).tolist() == [-1, -1, -1]
    store.append(name_rows(4), draw_rows(4))
    assert store.find(name_rows(6)).tolist() == [0, 1, 2, 3, -1, -1]
    assert store.find(name_rows(6).reshape(2, 3)).tolist() == [[0, 1, 2], [3, -1, -1]]
    with pytest.raises(StoreError, match="2 rows"):
        store.select(name_rows(6).reshape(2, 3))


def test_facts_keep_stores_apart(tmp_path: Path) -> None:
    one = FeatureStore.open(tmp_path, {"a": 1, "shape": [], "dtype": "int8"}, reporter=SILENT)
    same = FeatureStore.open(tmp_path, {"dtype": "int8", "shape": [], "a": 1}, reporter=SILENT)
    other = FeatureStore.open(tmp_path, {"a": 2, "shape": [], "dtype": "int8"}, reporter=SILENT)
    assert one.folder == same.folder != other.folder


def test_a_row_given_later_is_seen_after_a_refresh(tmp_path: Path) -> None:
    one, other = open_store(tmp_path), open_store(tmp_path)
    one.append(name_rows(2), draw_rows(2))
    assert other.find(name_rows(2)).tolist() == [-1, -1]
    other.refresh()
    assert other.find(name_rows(2)).tolist() == [0, 1]


def test_rows_stay_readable_when_the_store_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "PRELOAD_BYTES", 0)
    store, rows = open_store(tmp_path), draw_rows(4)
    store.append(name_rows(4), rows)
    stored = store.select(name_rows(4)[:, None])
    shutil.rmtree(store.folder)
    assert torch.equal(stored.gather([3, 1], [0, 0]), rows[[3, 1]])
    with pytest.raises(StoreError, match="cannot write"):
        store.append(name_rows(1, start=9), draw_rows(1))


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "value"), [("BLOCK_ROWS", 6), ("BLOCK_BYTES", 6 * 24), ("BLOCK_SECONDS", 0.0)]
)
def test_writer_makes_a_block_when_there_is_enough_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(feature_store, limit, value)
    store, rows = open_store(tmp_path), draw_rows(10)
    writer = BlockWriter(store)
    counts = []
    for first in range(0, 10, 2):
        writer.add(name_rows(2, start=first), rows[first : first + 2])
        counts.append(len(find_blocks(store)))
    writer.flush()
    assert counts == ([1, 2, 3, 4, 5] if limit == "BLOCK_SECONDS" else [0, 0, 1, 1, 1])
    assert len(find_blocks(store)) == (5 if limit == "BLOCK_SECONDS" else 2)
    stored = open_store(tmp_path).select(name_rows(10)[:, None])
    assert torch.equal(stored.gather(range(10), [0] * 10), rows)


def test_what_cannot_be_written_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    tried = []

    def fail(path: Path, *_: object) -> None:
        tried.append(path)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(feature_store, "save_tensors", fail)
    writer = BlockWriter(store)
    writer.add(name_rows(2), draw_rows(2))
    with pytest.raises(StoreError, match="No space left on device"):
        writer.flush()
    writer.flush()
    assert len(tried) == 1
    assert find_blocks(store) == []


def test_a_store_that_cannot_be_written_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = draw_rows(2)
    open_store(tmp_path).append(name_rows(2), rows)

    def fail(path: Path, _: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(feature_store, "write_json", fail)
    stored = open_store(tmp_path).select(name_rows(2)[:, None])
    assert torch.equal(stored.gather([1], [0]), rows[[1]])
    with pytest.raises(StoreError, match="Permission denied"):
        open_store(tmp_path / "new")


def test_no_folder_can_be_made_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot write"):
        open_store(tmp_path / "file")


# --- damage --------------------------------------------------------------------------------------


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("not a block")


def write_weights(path: Path) -> None:
    save_tensors(path, {"weight": torch.zeros(3)}, {})


def write_other_names(path: Path) -> None:
    identities = torch.zeros(4, 3, dtype=torch.uint8)
    save_tensors(path, {"identities": identities, "activations": draw_rows(4)}, {})


def write_other_count(path: Path) -> None:
    identities = torch.zeros(4, 16, dtype=torch.uint8)
    save_tensors(path, {"identities": identities, "activations": draw_rows(3)}, {})


def write_other_rows(path: Path) -> None:
    identities = torch.zeros(4, 16, dtype=torch.uint8)
    save_tensors(path, {"identities": identities, "activations": torch.zeros(4, 5)}, {})


def write_other_type(path: Path) -> None:
    identities = torch.zeros(4, 16, dtype=torch.uint8)
    rows = draw_rows(4, dtype=torch.bfloat16)
    save_tensors(path, {"identities": identities, "activations": rows}, {})


@pytest.mark.parametrize(
    "damage",
    [flip_byte, truncate, empty, write_text, write_weights, write_other_names, write_other_count,
     write_other_rows, write_other_type],
)  # fmt: skip
def test_a_damaged_block_is_removed_and_said(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    rows = draw_rows(6)
    store = open_store(tmp_path)
    for first in (0, 2, 4):
        store.append(name_rows(2, start=first), rows[first : first + 2])
    bad = find_blocks(store)[1]
    damage(bad)
    said: list[str] = []
    again = open_store(tmp_path, said)
    assert not bad.exists()
    assert len(said) == 1
    assert "feature cache: a block is computed again" in said[0]
    assert bad.name in said[0]
    assert (again.find(name_rows(6)) >= 0).tolist() == [True, True, False, False, True, True]
    again.append(name_rows(2, start=2), rows[2:4])
    said.clear()
    stored = open_store(tmp_path, said).select(name_rows(6)[:, None])
    assert torch.equal(stored.gather(range(6), [0] * 6), rows)
    assert said == []


def test_a_look_at_a_store_changes_nothing(tmp_path: Path) -> None:
    facts = {"shape": list(SHAPE), "dtype": "float32"}
    assert FeatureStore.peek(tmp_path / "none", facts) is None
    assert not (tmp_path / "none").exists()
    store = open_store(tmp_path)
    for first in (0, 2):
        store.append(name_rows(2, start=first), draw_rows(2))
    flip_byte(find_blocks(store)[0])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    found = FeatureStore.peek(tmp_path, facts)
    assert found is not None
    assert (found.find(name_rows(4)) >= 0).tolist() == [False, False, True, True]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_half_a_block_of_a_dead_process_is_swept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    left = store.folder / ".block-1.safetensors.999999999-0123abcd.tmp"
    left.write_bytes(b"half")
    with store.building(ignore):
        assert left.exists(), "another machine may be writing it"
    os.utime(left, (0, 0))
    with store.building(ignore):
        assert not left.exists()


# --- building ------------------------------------------------------------------------------------


def test_who_waits_to_build_says_so_once_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_store, "_LOCK_SECONDS", 0.02)
    said: list[str] = []
    one, other = open_store(tmp_path), open_store(tmp_path, said)
    lock = FileLock(one.folder / "build.lock")
    lock.acquire()
    waits = []

    def look() -> None:
        waits.append(time.monotonic())
        if len(waits) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), other.building(look):
        raise AssertionError("built while another does")
    assert len(waits) == 3
    assert said == ["waiting for another run that computes the same features"]
    one.append(name_rows(2), draw_rows(2))
    lock.release()
    with other.building(ignore):
        assert other.find(name_rows(2)).tolist() == [0, 1]


def test_the_right_to_build_is_given_back_after_an_error(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="broken"), store.building(ignore):
        raise ValueError("broken")
    with store.building(lambda: pytest.fail("still held")):
        pass


# --- identities ----------------------------------------------------------------------------------


def draw_files(root: Path, count: int = 4) -> list[Path]:
    paths = [root / f"{number}.bin" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 8)
    return paths


def test_identities_tell_files_apart_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = draw_files(tmp_path)
    first = identify_files(paths)
    assert len(set(first.tolist())) == 4
    assert all(len(each) == 16 for each in first.tolist())
    assert (identify_files(paths) == first).all()
    monkeypatch.chdir(tmp_path)
    assert (identify_files([Path(path.name) for path in paths]) == first).all()


def test_any_change_gives_another_identity(tmp_path: Path) -> None:
    paths = draw_files(tmp_path)
    path = paths[0]
    before = path.stat()
    seen = {identify_files(paths).tolist()[0]}

    def rewrite() -> None:  # same size, times put back
        path.write_bytes(b"another!")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def replace() -> None:
        other = tmp_path / "other"
        other.write_bytes(b"a third!")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(path)

    for change in (rewrite, rewrite, replace, rewrite):
        change()
        assert path.stat().st_size == before.st_size
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        identities = identify_files(paths).tolist()
        assert identities[0] not in seen
        seen.add(identities[0])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        identify_files(paths)


def test_views_have_identities_of_their_own(tmp_path: Path) -> None:
    files = identify_files(draw_files(tmp_path))
    views = identify_views(files, 3)
    assert views.shape == (4, 3)
    assert len(set(views.reshape(-1).tolist())) == 12
    assert (identify_views(files, 2) == views[:, :2]).all()


# --- batches -------------------------------------------------------------------------------------


def test_batches_follow_the_sampler_and_views_change_over_epochs(tmp_path: Path) -> None:
    store, rows = open_store(tmp_path), draw_rows(21)
    store.append(name_rows(21), rows)
    stored = store.select(name_rows(21).reshape(7, 3))
    labels = [3, 1, 4, 1, 5, 9, 2]
    sampler = EpochBatchSampler(num_images=7, batch_size=3, seed=1)
    loader = FeatureLoader(stored, labels, sampler)
    seen: dict[int, set[int]] = {position: set() for position in range(7)}
    for epoch in range(12):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        for batch, expected in zip(loader, keys, strict=True):
            positions = batch.positions.tolist()
            assert positions == [index for index, _ in expected]
            assert batch.labels.tolist() == [labels[index] for index in positions]
            for position, row in zip(positions, batch.inputs, strict=True):
                (view,) = (v for v in range(3) if torch.equal(row, rows[3 * position + v]))
                seen[position].add(view)
    assert all(views == {0, 1, 2} for views in seen.values())
    sampler.set_epoch(3)
    one = [batch.inputs for batch in loader]
    sampler.set_epoch(3, start_batch=1)
    assert all(torch.equal(a, b.inputs) for a, b in zip(one[1:], loader, strict=True))


def test_evaluation_takes_the_first_view_in_order(tmp_path: Path) -> None:
    store, rows = open_store(tmp_path), draw_rows(14)
    store.append(name_rows(14), rows)
    stored = store.select(name_rows(14).reshape(7, 2))
    batches = list(iterate_rows(stored, range(7), range(2, 7), 2))
    assert [batch.positions.tolist() for batch in batches] == [[2, 3], [4, 5], [6]]
    assert [batch.labels.tolist() for batch in batches] == [[2, 3], [4, 5], [6]]
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), rows[4::2])
