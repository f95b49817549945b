"""Saves disturbed at every call: what was there before is intact, or the new is whole."""

import atexit
import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from tests.faults.case import Case
from tests.faults.interference import KILL, Interference, interfering
from tests.faults.made_files import CLASSES, build_checkpoint, build_state, describe_model
from tests.helpers.forking import fork, wait
from tests.helpers.tiny import break_image, build_tiny_model, draw_image
from vtrain.errors import ResourceError
from vtrain.inference.feature_store import FeatureStore, StoreError, identify_views
from vtrain.models.model_file import load_model_file, save_model
from vtrain.results import resumable_array
from vtrain.results.embed import embed
from vtrain.results.inputs import PredictInput
from vtrain.results.prediction_files import FileForm, write_predictions
from vtrain.runs.checkpoint import load_checkpoint, save_checkpoint
from vtrain.runs.metric_log import COLUMNS, write_metrics
from vtrain.system.files import sweep_temporaries, write_text
from vtrain.system.json_csv import write_csv, write_json
from vtrain.system.reporter import SILENT

Act = Callable[[Path], object]


@dataclass(frozen=True, slots=True)
class Saving:
    """Something that is saved into a folder.

    `prepare` makes what is there before and `save` is disturbed; `check` gets the folder then.
    `resume`, where it is given, comes afterwards, and has to lead to what the undisturbed save
    leads to, which `is_same` compares. Every save makes the `calls`, among others.
    """

    name: str
    prepare: Act
    save: Act
    check: Callable[[Path, Path, Path], object]
    resume: Act | None = None
    calls: frozenset[str] = frozenset({"open", "write", "fsync", "close", "replace"})


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at a call, and maybe at all that follow."""

    name: str
    error: int
    lasting: bool = False


FAULTS = (
    Fault("killed", KILL),
    Fault("disk full", errno.ENOSPC),
    Fault("disk full from then on", errno.ENOSPC, lasting=True),
    Fault("device failing", errno.EIO),
    Fault("device failing from then on", errno.EIO, lasting=True),
)
# In short this meets every fault, the others the first two at every fourth call.
THOROUGH = ("model file",)


def cases(full: bool) -> Iterator[Case]:
    """Every kind of save with every fault at every call of it."""
    for saving in SAVINGS:
        thorough = full or saving.name in THOROUGH
        for fault in FAULTS if thorough else FAULTS[:2]:
            for at in range(1, count_calls(saving.name) + 1, 1 if thorough else 4):
                handle = partial(try_fault, saving, fault, at)
                yield Case(f"{saving.name}, {fault.name}, call {at}", handle)


def try_fault(saving: Saving, fault: Fault, at: int, folder: Path) -> None:
    """Save with one fault, look, and go on where that can be done."""
    before, after = make_reference(saving.name)
    shutil.copytree(before, folder, dirs_exist_ok=True)
    interference = Interference(fault.error, at, lasting=fault.lasting)
    if fault.error == KILL:
        with interfering(interference):
            child = fork(partial(saving.save, folder))
        assert wait(child) == -9
        for each in [folder, *(each for each in folder.iterdir() if each.is_dir())]:
            sweep_temporaries(each)
    else:
        succeeded = run_disturbed(saving, interference, folder)
        assert interference.failed, "nothing failed"
        if "unlink" in interference.failed:  # its process lives on: nobody sweeps it yet
            for leftover in folder.rglob(".*.tmp"):
                leftover.unlink()
        if succeeded and saving.resume is None:
            assert_same_files(folder, after)
    saving.check(folder, before, after)
    if saving.resume is not None:
        saving.resume(folder)
        saving.check(folder, after, after)


def run_disturbed(saving: Saving, interference: Interference, folder: Path) -> bool:
    """Whether the save has succeeded all the same; fails where it does not say what went wrong."""
    said = None
    with interfering(interference):
        try:
            saving.save(folder)
        except (ResourceError, StoreError) as error:
            said = str(error).lower()
    expected = "no space left" if interference.error == errno.ENOSPC else "input/output error"
    assert said is None or expected in said, said
    return said is None


@cache
def make_reference(name: str) -> tuple[Path, Path]:
    """Folders as they are before and after an undisturbed save."""
    saving = next(each for each in SAVINGS if each.name == name)
    root = Path(tempfile.mkdtemp(prefix="vtrain-saving-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    before, after = root / "before", root / "after"
    before.mkdir()
    saving.prepare(before)
    shutil.copytree(before, after)
    saving.save(after)
    saving.check(after, after, after)
    return before, after


@cache
def count_calls(name: str) -> int:
    """How many calls an undisturbed save makes."""
    saving = next(each for each in SAVINGS if each.name == name)
    interference = Interference()
    with tempfile.TemporaryDirectory(prefix="vtrain-saving-") as folder:
        shutil.copytree(make_reference(name)[0], folder, dirs_exist_ok=True)
        with interfering(interference):
            saving.save(Path(folder))
    assert saving.calls <= set(interference.calls), interference.calls
    return len(interference.calls)


# --- what has to hold ----------------------------------------------------------------------------


def read_files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


def assert_same_files(folder: Path, other: Path) -> None:
    found, expected = read_files(folder), read_files(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def check_old_or_new(folder: Path, before: Path, after: Path) -> None:
    """Each file is as before or as after, and there is no other."""
    found, old, new = read_files(folder), read_files(before), read_files(after)
    assert old.keys() <= found.keys() <= old.keys() | new.keys(), sorted(found)
    for name, content in found.items():
        assert content in (old.get(name), new.get(name)), f"{name} is neither old nor new"


def check_checkpoint(folder: Path, before: Path, after: Path) -> None:
    known = {each.name for root in (before, after) for each in root.iterdir()}
    assert {each.name for each in folder.iterdir()} <= known
    loaded = load_checkpoint(folder / "last.ckpt")
    expected = build_checkpoint(loaded.state.step)
    assert loaded.state == expected.state
    assert all(torch.equal(loaded.model[name], expected.model[name]) for name in expected.model)


def check_model(folder: Path, before: Path, after: Path) -> None:
    check_old_or_new(folder, before, after)
    load_model_file(folder / "model.safetensors")


def check_outputs(folder: Path, before: Path, after: Path) -> None:
    """The output and its index are old or new, whatever else there is to resume from."""
    found, old, new = read_files(folder), read_files(before), read_files(after)
    assert old.keys() <= found.keys()
    for name in new:
        assert found.get(name) in (old.get(name), new[name]), f"{name} is neither old nor new"
    if before == after:
        assert found.keys() == new.keys(), sorted(found)


def check_prefix(folder: Path, before: Path, after: Path) -> None:
    """Answers that are there are the first of those that will be."""
    for name, content in read_files(after).items():
        path = folder / name
        found = path.read_bytes() if path.exists() else b""
        assert content.startswith(found)
    if before == after:
        assert_same_files(folder, after)


# --- what is saved -------------------------------------------------------------------------------


def save_checkpoint_of(seed: int, folder: Path) -> None:
    save_checkpoint(folder / "last.ckpt", build_checkpoint(seed))


def save_model_of(seed: int, folder: Path) -> None:
    save_model(folder / "model.safetensors", build_state(seed), describe_model())


def save_json(size: int, folder: Path) -> None:
    write_json(folder / "data.json", {"numbers": list(range(size))})


def save_csv(size: int, folder: Path) -> None:
    write_csv(folder / "rows.csv", ("row", "name"), ((row, f"={row}") for row in range(size)))


def save_text(size: int, folder: Path) -> None:
    write_text(folder / "log.txt", "line\n" * size)


def save_metrics(epochs: int, folder: Path) -> None:
    write_metrics(folder, [dict.fromkeys(COLUMNS, epoch) for epoch in range(epochs)])


@cache
def draw_images() -> Path:
    root = Path(tempfile.mkdtemp(prefix="vtrain-images-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for number in range(4):
        draw_image(root / f"{number}.png", seed=number, size=(20, 16))
    break_image(root / "broken.png")
    return root


cached_model = cache(partial(build_tiny_model, CLASSES))


def save_old_features(folder: Path) -> None:
    (folder / "out.npy").write_bytes(b"earlier rows")
    (folder / "out.csv").write_bytes(b"earlier index")


def save_features(folder: Path, *, resume: bool = False) -> None:
    with patch.object(resumable_array, "COMMIT_SECONDS", 0.0):  # after every block
        embed(
            draw_images(),
            folder / "out.npy",
            cached_model(),
            batch_size=2,
            workers=0,
            resume=resume,
            reporter=SILENT,
        )


def save_predictions(form: FileForm, folder: Path, *, resume: bool = False) -> None:
    inputs = [PredictInput(str(path)) for path in sorted(draw_images().iterdir())]
    suffix = "jsonl" if form == "json" else "csv"
    write_predictions(
        folder / f"out.{suffix}",
        inputs,
        cached_model(),
        form=form,
        batch_size=2,
        workers=0,
        resume=resume,
    )


ROWS, FIRST_ROWS = torch.arange(24.0).reshape(6, 4), 2
NAMES = identify_views(np.array([b"file"], dtype="S16"), len(ROWS))[0]


def open_store(folder: Path) -> FeatureStore:
    return FeatureStore.open(folder, {"shape": [4], "dtype": "float32"}, reporter=SILENT)


def save_first_rows(folder: Path) -> None:
    open_store(folder).append(NAMES[:FIRST_ROWS], ROWS[:FIRST_ROWS])


def save_missing_rows(folder: Path) -> None:
    """Add what is missing in blocks of two rows, as a run does."""
    store = open_store(folder)
    with store.building(lambda: None):
        for start in range(0, len(ROWS), 2):
            names = NAMES[start : start + 2]
            if (store.find(names) < 0).any():
                store.append(names, ROWS[start : start + 2])


def check_store(folder: Path, before: Path, after: Path) -> None:
    """What was stored is there, and every row that is there is right."""
    store = open_store(folder)
    rows = store.find(NAMES)
    there = rows >= 0
    assert there[:FIRST_ROWS].all()
    assert before != after or there.all()
    stored = store.select(NAMES[there][:, None])
    found = stored.gather(range(len(stored)), [0] * len(stored))
    assert torch.equal(found, ROWS[torch.from_numpy(there)])
    allowed = ("facts.json", "build.lock", "block-")
    assert all(each.name.startswith(allowed) for each in store.folder.iterdir())


SAVINGS = (
    Saving(
        "checkpoint",
        partial(save_checkpoint_of, 1),
        partial(save_checkpoint_of, 2),
        check_checkpoint,
    ),
    Saving("model file", partial(save_model_of, 1), partial(save_model_of, 2), check_model),
    Saving("JSON", partial(save_json, 10), partial(save_json, 9_000), check_old_or_new),
    Saving("CSV", partial(save_csv, 5), partial(save_csv, 3_000), check_old_or_new),
    Saving("text", partial(save_text, 1), partial(save_text, 5_000), check_old_or_new),
    Saving("metrics", partial(save_metrics, 2), partial(save_metrics, 30), check_old_or_new),
    Saving(
        "features of embed",
        save_old_features,
        save_features,
        check_outputs,
        partial(save_features, resume=True),
        calls=frozenset({"open", "write", "truncate", "posix_fallocate", "fsync", "replace"}),
    ),
    Saving(
        "predictions as CSV",
        lambda folder: None,
        partial(save_predictions, "csv"),
        check_prefix,
        partial(save_predictions, "csv", resume=True),
        calls=frozenset({"open", "truncate", "write", "close", "replace"}),
    ),
    Saving(
        "predictions as JSON",
        lambda folder: None,
        partial(save_predictions, "json"),
        check_prefix,
        partial(save_predictions, "json", resume=True),
        calls=frozenset({"open", "truncate", "write", "close", "replace"}),
    ),
    Saving(
        "feature store",
        save_first_rows,
        save_missing_rows,
        check_store,
        save_missing_rows,
        calls=frozenset({"os.open", "open", "write", "fsync", "replace"}),
    ),
)
