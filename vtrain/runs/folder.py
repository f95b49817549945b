"""The folder of a run: its name, its lock, and what must not change when it is resumed."""

import contextlib
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vtrain.config.run_files import CHECKPOINT_NAME, MODEL_NAME, RUNS
from vtrain.errors import ModelError, RunLockedError, UsageError, suggest
from vtrain.system.files import path_exists, require_space, write_error
from vtrain.system.json_csv import from_plain, read_json_object, to_plain, write_json
from vtrain.system.reporter import Reporter
from vtrain.system.text import one_line, quote_path

CONFIG_NAME = "config.yaml"
LOG_NAME = "log.txt"
LOCK_NAME = "run.lock"
RESULT_NAME = "result.json"
PREVIOUS_NAME = "previous.ckpt"  # the one before, should the last one turn out to be damaged
DAMAGED_NAME = "last.ckpt.damaged"
# Forked loader workers inherit the lock and outlive a killed parent by some seconds.
LOCK_WAIT_SECONDS = 15.0
# What a resumed run may change; a change of epochs may only extend it.
MAY_CHANGE = (
    "run_dir",
    "data.workers",
    "train.device",
    "train.early_stop",
    "train.epochs",
    "train.on_nan",
    "train.report",
    "train.save_every_steps",
    "train.tensorboard",
)


@dataclass(frozen=True, slots=True)
class Change:
    """A setting or fact that differs between a run and its resumption."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.show(self.before)} -> {self.show(self.now)}"

    def show(self, value: Any) -> Any:
        """One of its values for people: a path not longer than it has to be."""
        is_path = isinstance(value, str) and Path(value).is_absolute()
        return one_line(Path(value)) if is_path else value


def choose_run_dir(run_dir: str | None, name: str, *, resume: bool) -> Path:
    """The folder of a new run, or with `resume` that of the run to go on with.

    Without `run_dir` runs are numbered: `runs/<name>-001` and on; resume takes the highest.

    Raises:
        UsageError: a new run's folder exists already, or there is no run to resume.
    """
    if run_dir is None:
        numbers = sorted(_run_numbers(name))
        if not resume:
            return _find_free(name, (numbers[-1] if numbers else 0) + 1)
        if not numbers:
            raise UsageError(
                f"nothing to resume: no run of {name} below {RUNS}/",
                "start one without --resume",
            )
        return RUNS / f"{name}-{numbers[-1]:03d}"
    path = Path(run_dir)
    if resume:
        _require_run(path)
    if not resume and _is_used(path):
        raise UsageError(
            f"run_dir: {path} exists already and is never overwritten",
            "continue it with --resume, or choose another run_dir",
        )
    return path


def has_run(run_dir: str | None, name: str) -> bool:
    """Whether there is something to resume: a folder with anything in it, or a numbered run."""
    if run_dir is None:
        return any(True for _ in _run_numbers(name))
    return _is_used(Path(run_dir))


def _is_used(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or bool(_list_names(path)))


def _list_names(folder: Path) -> set[str]:
    try:
        return {each.name for each in folder.iterdir()}
    except OSError as error:
        raise UsageError(
            f"cannot read run folder {folder}: {error.strerror}", "choose another run_dir"
        ) from error


def _require_run(path: Path) -> None:
    """Raise UsageError unless `path` is the folder of a run, or of one that was just starting."""
    if not path.is_dir():
        raise UsageError(
            f"nothing to resume: {path} does not exist",
            "start without --resume, or say where the run is now: run_dir=FOLDER",
        )
    names = _list_names(path)
    # The lock comes first in a new folder, the checkpoint is what matters in one that was copied.
    if names and not names & {LOCK_NAME, CHECKPOINT_NAME, PREVIOUS_NAME}:
        raise UsageError(
            f"nothing to resume: {path} is not the folder of a run",
            "choose another run_dir; what is there stays as it is",
        )


def claim_run_dir(run_dir: str | None, name: str) -> Path:
    """Create the folder of a new run; of two starts at once each gets a number of its own.

    Raises:
        UsageError: the folder exists already, or cannot be created.
    """
    while True:
        path = choose_run_dir(run_dir, name, resume=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=run_dir is not None)
        except FileExistsError as error:
            if run_dir is None and path.is_dir():  # another start was faster
                continue
            raise UsageError(
                f"cannot create run folder {path}: it, or {path.parent}, is something else than a "
                "folder",
                "remove that, or choose another run_dir",
            ) from error
        except OSError as error:
            raise write_error(path, error) from error
        return path


def require_new_run(run_dir: Path) -> None:
    """Make sure, with the lock held, that no other start of a moment ago has used the folder.

    Raises:
        UsageError: there is something in it.
    """
    if _list_names(run_dir) - {LOCK_NAME}:
        raise UsageError(
            f"run_dir: {run_dir} has been used by another run since this one was started",
            "continue that with --resume, or choose another run_dir",
        )


def _run_numbers(name: str) -> Iterator[int]:
    for path in RUNS.glob(f"{glob_escape(name)}-*"):
        found = re.fullmatch(r"(\d+)", path.name[len(name) + 1 :])
        if found and path.is_dir():
            yield int(found[1])


def _find_free(name: str, number: int) -> Path:
    """The first folder from `number` on whose name nothing has, not even a broken link."""
    while os.path.lexists(path := RUNS / f"{name}-{number:03d}"):
        number += 1
    return path


def glob_escape(text: str) -> str:
    """The text as a glob pattern that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", text)


@contextlib.contextmanager
def lock_run(run_dir: Path, *, reporter: Reporter) -> Iterator[None]:
    """Hold `run.lock` while the context is open; `reporter` is told of a longer wait.

    The lock is the kernel's and goes with the process. On a file system that has none, the file
    itself is the lock, which `reporter` is told as well; one of a dead process of this machine does
    not count.

    Raises:
        RunLockedError: another process holds it.
        UsageError: the folder cannot be written.
    """
    path = run_dir / LOCK_NAME
    lock = FileLock(path)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                lock.acquire(timeout=min(1.0, LOCK_WAIT_SECONDS))
            except Timeout:
                reporter.say(f"waiting for {path}, held by {_read_owner(path)}")
                lock.acquire(timeout=LOCK_WAIT_SECONDS)
    except OSError as error:
        if not isinstance(error, Timeout):
            raise write_error(path, error) from error
        raise RunLockedError(
            f"run folder {run_dir} is in use by {_read_owner(path)}",
            f"wait until it ends, or choose another run_dir; if its machine is gone, remove {path}",
        ) from error
    if any("flock" in str(each.message) for each in caught):
        reporter.say(f"{run_dir} is on a file system without locks: {path} alone keeps others out")
    else:
        _write_owner(path)
    try:
        yield
    finally:
        lock.release()


def _write_owner(path: Path) -> None:
    """Say in the lock's file who holds it, for others to tell; it keeps nobody out."""
    text = f"process {os.getpid()} on {socket.gethostname()}, {time.strftime('%Y-%m-%d %H:%M')}"
    with contextlib.suppress(OSError):
        path.write_text(text, encoding="utf-8")


def _read_owner(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")[:200].strip()
    except OSError:
        text = ""
    return text if text.startswith("process ") and text.isprintable() else "another process"


def find_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Differences between two flat mappings, sorted by name."""
    return [
        Change(name, before.get(name), now.get(name))
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]


def require_same_run(
    run_dir: Path, *, config: list[Change], data: list[Change], epochs_done: int
) -> list[Change]:
    """Refuse to resume with another experiment; returns the changes that are allowed.

    Raises:
        UsageError: a setting or the data differ in a way that would change the result.
    """
    refused = [change for change in config if change.name not in MAY_CHANGE] + data
    for change in config:
        if change.name == "train.epochs" and change.now < max(change.before, epochs_done):
            refused.append(change)
    if refused:
        lines = "\n".join(f"  {change}" for change in refused)
        raise UsageError(
            f"{run_dir} cannot be resumed, because this changed:\n{lines}",
            "undo the change, or start a new run with another run_dir",
        )
    return [change for change in config if change.name != "run_dir"]


def count_needed_bytes(*, checkpoint_bytes: int, model_bytes: int) -> int:
    """What a run needs of the disk: two checkpoints and a model, and one more of each at times."""
    return 3 * checkpoint_bytes + 2 * model_bytes


def require_disk_space(run_dir: Path, *, checkpoint_bytes: int, model_bytes: int) -> None:
    """Find out before training whether the disk has room for what the run will save.

    That is two checkpoints and a model, and at times a third and a second one while they are
    written. What the run has saved already does not count.

    Raises:
        ResourceError: it has not.
    """
    kept = [CHECKPOINT_NAME, PREVIOUS_NAME, MODEL_NAME]
    existing = sum((run_dir / name).stat().st_size for name in kept if (run_dir / name).exists())
    needed = count_needed_bytes(checkpoint_bytes=checkpoint_bytes, model_bytes=model_bytes)
    require_space(run_dir, needed - existing, "the checkpoints of this run")


@dataclass(frozen=True, slots=True)
class FitResult:
    """What a finished run came to: metrics of the saved best model, and how long it took.

    `epochs` were trained, of `planned_epochs` (early stopping ends sooner).
    """

    run_dir: Path
    best_epoch: int
    val_top1: float
    val_macro_f1: float
    test_top1: float | None
    epochs: int
    planned_epochs: int
    seconds: float
    already_finished: bool = False


def save_result(run_dir: Path, result: FitResult) -> None:
    """Mark the run as finished and say what it came to, in `result.json`."""
    write_json(run_dir / RESULT_NAME, {"schema": 1, **to_plain(result)})


def load_result(run_dir: Path) -> FitResult | None:
    """What `result.json` says, None where the run has not finished or the file is damaged."""
    try:
        content = read_json_object(run_dir / RESULT_NAME)
        return from_plain(FitResult, {**content, "run_dir": run_dir, "already_finished": True})
    except (OSError, ValueError):
        return None


NAME_A_MODEL = "name a model: -m RUN, -m FILE or -m resnet50"
NAME_A_RUN = "name a run folder"  # where a command takes no model


def find_newest_run(runs: Path, instead: str = NAME_A_MODEL) -> Path:
    """The folder of the run that finished last; `instead` is what the user may do without one.

    Raises:
        ModelError: no finished run below `runs`.
    """
    results = [
        path for path in runs.glob(f"*/{RESULT_NAME}") if (path.parent / MODEL_NAME).exists()
    ]
    if not results:
        raise ModelError(
            f"no finished run below {runs}/",
            f"train one with `vtrain fit CONFIG`, or {instead}",
        )
    return max(results, key=lambda path: path.stat().st_mtime).parent


def find_run_names(runs: Path) -> list[str]:
    """Names of finished runs, sorted; none where the folder is missing."""
    return sorted(path.parent.name for path in runs.glob(f"*/{RESULT_NAME}"))


def find_named(name: str) -> Path | None:
    """What a run or model is called: a path, or the name of a folder below `runs/`; or None.

    Raises:
        UsageError: there are both.
        OSError: one cannot ask, since the name is too long or a folder is closed.
    """
    path, run = Path(name), RUNS / name
    is_plain = name not in ("", ".", "..") and "/" not in name and os.sep not in name
    is_run = is_plain and run.is_dir()
    if not path.exists():
        return run if is_run else None
    if is_run and not path.samefile(run):
        raise UsageError(
            f"{one_line(name)} is there twice, here and as {one_line(run)}",
            f"say which one: {quote_path(f'./{name}')} or {quote_path(run)}",
        )
    return path


def find_run(name: str) -> Path:
    """The run folder that a command names, by its path or its name below `runs/`.

    Raises:
        UsageError: there is none, or there are two.
    """
    try:
        found = find_named(name)
    except OSError as error:
        raise UsageError(f"cannot read {one_line(name)}: {error.strerror}", NAME_A_RUN) from error
    if found is None:
        near = suggest(name.removeprefix(f"{RUNS}/"), find_run_names(RUNS), lead="")
        raise UsageError(
            f"{one_line(name)} is no run folder: not there",
            one_line(f"{near} `vtrain runs` lists them".lstrip()),
        )
    return found


def is_running(run_dir: Path) -> bool:
    """Whether a process holds the lock of a run, as far as the file system tells."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        with (run_dir / LOCK_NAME).open("rb") as stream:  # unlike FileLock it changes nothing
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def find_input(run_dir: Path, path: Path, written: str | None) -> Path:
    """Where an input of a run is that its files name `path`; `path` itself if it is not found.

    A relative path, of an older version, leads on from the working directory or a folder above the
    run. Where a run was moved with what lies beside it, that is found from the folder that the run
    was `written` to.
    """
    here, places = run_dir.absolute(), [path]
    if not path.is_absolute():
        places += [above / path for above in here.parents]
    elif written is not None:
        for then, now in zip(Path(written).parents, here.parents, strict=False):
            if path.is_relative_to(then):
                places.append(now / path.relative_to(then))
    return next(filter(path_exists, places), path)
