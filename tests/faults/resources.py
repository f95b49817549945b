"""A machine that lacks something: disk, memory, files, a home, a network, workers, locks."""

import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults.case import Case, NotPossible
from tests.faults.command import Command, set_value, wrap
from tests.faults.processes import Running, run_to_end, started
from tests.faults.training import RECIPES, Recipe, build_fit, images, require_same, undisturbed
from tests.helpers.forking import fork, wait
from vtrain.errors import ImageError
from vtrain.system.files import write_error

WITH_WORKERS = RECIPES[1]
PLAIN = RECIPES[0]
STORED = RECIPES[3]


def cases(full: bool) -> Iterator[Case]:
    """All of them, or one of each sort."""
    named = [*_SHORT, *_MORE] if full else _SHORT
    for name, handle in named:
        yield Case(name, handle)


# --- what is expected ----------------------------------------------------------------------------


def _refused(command: Command, code: int, *parts: str) -> str:
    """Run a command that must end with an error of the contract, and leave nothing running."""
    found, text = run_to_end(command)
    assert found == code, f"exit code {found}: {text}"
    assert "Traceback" not in text, text
    for part in ("error: ", "hint: ", *parts):
        assert part in text, f"{part!r} is missing: {text}"
    return text


def _succeeds(command: Command, *parts: str) -> str:
    code, text = run_to_end(command)
    assert code == 0, text
    assert "Traceback" not in text, text
    for part in parts:
        assert part in text, f"{part!r} is missing: {text}"
    return text


def _goes_on(folder: Path, recipe: Recipe) -> None:
    """With the fault gone, the same command ends with the bits of an undisturbed run."""
    _succeeds(build_fit(recipe, folder))
    require_same(recipe, folder / "run")


# --- disk ----------------------------------------------------------------------------------------


def _file_size_limit(folder: Path) -> None:
    limits = {"RLIMIT_FSIZE": 50_000}
    _refused(build_fit(PLAIN, folder, limits=limits), 5, "a file size limit", "free some space")
    _goes_on(folder, PLAIN)


def _fail_write(call: int, lasting: bool, part: str = "/.last.ckpt.") -> None:
    """Let the disk be full when what has `part` in its path is brought to it."""
    calls = 0

    def build(original: Any) -> Any:
        def fsync(descriptor: int) -> None:
            nonlocal calls
            if part in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                calls += 1
                if calls == call or (lasting and calls > call):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(descriptor)

        return fsync

    wrap("os", "fsync", build)


def _full_disk(folder: Path, *, call: int) -> None:
    before = partial(_fail_write, call, False)
    recipe = RECIPES[2]
    _refused(build_fit(recipe, folder, before=before), 5, "no space left", "what was there before")
    assert (folder / "run" / "last.ckpt").exists() == (call > 1)
    _goes_on(folder, recipe)


def _full_disk_then_free(folder: Path) -> None:
    recipe = RECIPES[2]
    for _ in range(3):
        command = build_fit(recipe, folder, before=partial(_fail_write, 2, True))
        _refused(command, 5, "no space left")
    _goes_on(folder, recipe)


def _report_full() -> None:
    usage = shutil.disk_usage("/")._replace(free=5000)
    shutil.disk_usage = lambda path: usage


def _no_space_to_begin(folder: Path) -> None:
    text = _refused(
        build_fit(PLAIN, folder, before=_report_full), 5, "the checkpoints of this run need"
    )
    assert "epoch 1/" not in text.replace(" ", "").replace("epoch1/", "epoch 1/"), text
    _goes_on(folder, PLAIN)


def _full_cache_disk(folder: Path) -> None:
    """Stored features only save time: without them the result is the same."""
    before = partial(_fail_write, 0, True, "/cache/")
    command = build_fit(STORED, folder, before=before)
    _succeeds(command, "feature cache: cannot write")
    require_same(STORED, folder / "run")


def _fail_metrics() -> None:
    calls = 0

    def build(original: Any) -> Any:
        def fail(folder: Path, rows: object) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise write_error(folder / "metrics.jsonl", full) from full
            original(folder, rows)

        return fail

    wrap("vtrain.runs.saved_state", "write_metrics", build)


def _full_disk_for_metrics(folder: Path) -> None:
    recipe = RECIPES[2]
    _refused(build_fit(recipe, folder, before=_fail_metrics), 5, "metrics.jsonl: no space left")
    _goes_on(folder, recipe)


def _full_disk_of(folder: Path, *, kind: str) -> None:
    run, _ = undisturbed(PLAIN)
    output = "out.npy" if kind == "embed" else "out.jsonl"
    arguments = (
        ("embed", str(images()), output, "-m", str(run))
        if kind == "embed"
        else ("predict", str(images()), "-o", output, "-m", str(run))
    )
    environ: dict[str, str | None] = {"VTRAIN_CACHE": str(folder / "cache")}
    _refused(
        Command(arguments, folder, environ, limits={"RLIMIT_FSIZE": 1000}), 5, "a file size limit"
    )
    extra = () if kind == "embed" else ("--resume",)
    _succeeds(Command((*arguments, *extra), folder, environ))
    assert (folder / output).exists()


@contextmanager
def _small_disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir(parents=True, exist_ok=True)
    line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotPossible(f"mount: {error.strerror}") from error
    if done.returncode:
        raise NotPossible(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _real_full_disk(folder: Path) -> None:
    with _small_disk(folder / "run", "300k"):
        _refused(build_fit(PLAIN, folder), 5, "free")


def _real_full_shared_memory(folder: Path) -> None:
    if wait(fork(_own_small_shared_memory)):
        raise NotPossible("no /dev/shm of its own can be mounted for a process")
    command = build_fit(
        WITH_WORKERS, folder, "data.image_size=256", before=_own_small_shared_memory
    )
    _refused(command, 5, "shared memory is full", "shm-size")


def _own_small_shared_memory() -> None:
    """Let this process and its children alone see a /dev/shm of 256 kB.

    Raises:
        OSError: that takes the rights of root.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, private, recursive = 0x20000, 1 << 18, 1 << 14
    done = (
        libc.unshare(new_mounts) == 0
        and libc.mount(b"none", b"/", None, private | recursive, None) == 0
        and libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=256k") == 0
    )
    if not done:
        raise OSError(ctypes.get_errno(), "mount")


# --- memory, files -------------------------------------------------------------------------------


def _shared_memory_full(folder: Path) -> None:
    """What torch finds when a segment cannot be made is an error of the file system."""
    before = partial(_limit_in_workers, 2000)
    _refused(build_fit(WITH_WORKERS, folder, before=before), 5, "shared memory is full", "shm-size")
    _goes_on(folder, WITH_WORKERS)


def _limit_in_workers(size: int) -> None:
    def build(original: Any) -> Any:
        def set_up(number: int) -> None:
            original(number)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

        return set_up

    wrap("vtrain.data.loaders", "set_up_worker", build)


def _memory_limit(folder: Path) -> None:
    """An address space that has room for torch but not for a batch of large images."""
    command = build_fit(
        PLAIN,
        folder,
        "data.image_size=2048",
        "data.batch_size=13",
        before=_limit_memory,
    )
    text = _refused(command, 5, "out of memory")
    assert "in 2 parts" in text, text  # it tried before
    assert (folder / "run").is_dir()


def _limit_memory() -> None:
    torch.zeros(10).sum()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 700_000_000
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))


def _memory_error_in_worker(folder: Path) -> None:
    before = partial(_disturb_readers, _out_of_memory)
    command = build_fit(WITH_WORKERS, folder, before=before)
    _refused(command, 3, "needs more memory than there is", "/bee/002.jpg")
    _goes_on(folder, WITH_WORKERS)


def _disturb_readers(act: Callable[[], None]) -> None:
    """Do something in the workers, in place of reading a certain training image."""
    owner = os.getpid()

    def build(original: Any) -> Any:
        def read(path: Path, **options: Any) -> Any:
            if os.getpid() != owner and str(path).endswith("train/bee/002.jpg"):
                act()
            return original(path, **options)

        return read

    wrap("vtrain.data.loaders", "read_image", build)


def _out_of_memory() -> None:
    raise ImageError("needs more memory than there is") from MemoryError()


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _die_once(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _file_limit(folder: Path) -> None:
    """So few files that no worker can hand its batches over; the run itself does with less."""
    limits = {"RLIMIT_NOFILE": 30}
    code, text = run_to_end(build_fit(WITH_WORKERS, folder, limits=limits))
    assert code in (0, 5), text
    assert "Traceback" not in text, text
    if code:
        assert "no more files can be opened" in text, text
    _goes_on(folder, WITH_WORKERS)


# --- workers -------------------------------------------------------------------------------------


def _worker_lost(folder: Path, *, number: int) -> None:
    """The run goes on with new workers to the same bits."""
    before = partial(set_value, "vtrain.data.loaders", "WORKER_TIMEOUT_S", 3.0)
    with started(build_fit(WITH_WORKERS, folder, before=before)) as running:
        running.wait_for(lambda: "epoch 1/4" in _squeezed(running), "the first epoch")
        victims = running.others()
        if victims:
            os.kill(victims[0], number)
        code = running.wait()
        assert code == 0, running.text()
        running.require_no_others()
    require_same(WITH_WORKERS, folder / "run")


def _squeezed(running: Running) -> str:
    return " ".join(running.text().split())


def _deadly_file(folder: Path) -> None:
    before = partial(_disturb_readers, _crash)
    command = build_fit(WITH_WORKERS, folder, before=before)
    text = _refused(command, 3, "the process that decoded it died", "bee/002.jpg")
    assert "what it was asked for is read again" in text, text
    _goes_on(folder, WITH_WORKERS)


def _embed_worker_killed(folder: Path) -> None:
    run, _ = undisturbed(PLAIN)
    arguments = ("embed", str(images()), "out.npy", "-m", str(run), "--workers", "2")
    environ: dict[str, str | None] = {"VTRAIN_CACHE": str(folder / "cache")}
    _succeeds(Command(arguments, folder, environ))
    expected = (folder / "out.npy").read_bytes()
    (folder / "out.npy").unlink()
    before = partial(_disturb_readers, partial(_die_once, folder / "died"))
    command = Command(arguments, folder, environ, before=before)
    _succeeds(command, "what it was asked for is read again")
    assert (folder / "out.npy").read_bytes() == expected


# --- home, cache, folders ------------------------------------------------------------------------


def _home(folder: Path, *, value: str | None) -> None:
    """Nothing needs a home: without one the cache is left out, which is said."""
    environ = {"VTRAIN_CACHE": None, "XDG_CACHE_HOME": None, "TORCH_HOME": None, "HOME": value}
    _succeeds(build_fit(STORED, folder, environ=environ))
    require_same(STORED, folder / "run")


def _cache(folder: Path, *, kind: str) -> None:
    places = {"file": folder / "a file", "proc": Path("/proc/vtrain"), "closed": folder / "closed"}
    place = places[kind]
    before: Callable[[], None] | None = None
    if kind == "file":
        place.touch()
    if kind == "closed":
        place.mkdir(mode=0o500)
        before = _obey_permissions
    command = build_fit(STORED, folder, environ={"VTRAIN_CACHE": str(place)}, before=before)
    _succeeds(command, "feature cache: cannot write")
    require_same(STORED, folder / "run")


def _obey_permissions() -> None:
    """Give up the rights by which root writes where nobody may.

    Raises:
        OSError: the kernel does not let us.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    if libc.capget(header, sets) == 0:
        sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    if libc.capset(header, sets) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _closed_run_folder(folder: Path) -> None:
    (folder / "run").mkdir(mode=0o500)
    command = build_fit(PLAIN, folder, before=_obey_permissions)
    _refused(command, 2, "cannot write", "Permission denied", "may write to")


def _read_only_run_folder(folder: Path) -> None:
    command = build_fit(PLAIN, folder)
    arguments = tuple(
        "run_dir=/proc/run" if each == "run_dir=run" else each for each in command.arguments
    )
    _refused(Command(arguments, folder, command.environ), 2, "/proc/run")


def _read_only_data(folder: Path) -> None:
    own = folder / "images"
    shutil.copytree(images(), own)
    for path in [own, *own.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        overrides = (f"data.train={own}/train", f"data.val={own}/val")
        _succeeds(build_fit(PLAIN, folder, *overrides, before=_obey_permissions))
    finally:
        for path in [own, *own.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def _no_network(folder: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    environ = {"TORCH_HOME": str(folder / "torch"), "https_proxy": nowhere, "HTTPS_PROXY": nowhere}
    command = build_fit(
        PLAIN,
        folder,
        "model.backbone=resnet18",
        "model.weights=DEFAULT",
        "model.options={}",
        environ=environ,
    )
    _refused(command, 4, "cannot download resnet18", str(folder / "torch"))


def _no_output(folder: Path) -> None:
    """A terminal that is gone takes no run with it; its log has everything."""
    _succeeds(build_fit(PLAIN, folder, before=_close_output))
    require_same(PLAIN, folder / "run")
    assert "epoch 4/4" in (folder / "run" / "log.txt").read_text()


def _close_output() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # what is written to it fails
    os.dup2(writer, 2)


def _no_temporary_folder(folder: Path) -> None:
    environ: dict[str, str | None] = {"TMPDIR": "/nonexistent/tmp"}
    _succeeds(build_fit(WITH_WORKERS, folder, environ=environ))
    require_same(WITH_WORKERS, folder / "run")


# --- locks ---------------------------------------------------------------------------------------


def _stale_lock(folder: Path) -> None:
    """Also while the workers of the killed run are still there."""
    with started(build_fit(WITH_WORKERS, folder)) as running:
        running.wait_for(lambda: "epoch 1/4" in _squeezed(running), "the first epoch")
        running.send(signal.SIGKILL)
        running.wait()
        _goes_on(folder, WITH_WORKERS)


def _held_lock(folder: Path) -> None:
    with started(build_fit(WITH_WORKERS, folder)) as running:
        running.wait_for(lambda: (folder / "run" / "run.lock").exists(), "the lock")
        running.send(signal.SIGSTOP, group=True)
        waits = partial(set_value, "vtrain.runs.folder", "LOCK_WAIT_SECONDS", 0.2)
        _refused(build_fit(WITH_WORKERS, folder, before=waits), 7, "in use by process ")
        running.send(signal.SIGCONT, group=True)
        assert running.wait() == 0, running.text()
    require_same(WITH_WORKERS, folder / "run")


def _no_locks(folder: Path) -> None:
    """As some network file systems: there is still one run for one folder."""
    _succeeds(build_fit(PLAIN, folder, before=_refuse_locks))
    require_same(PLAIN, folder / "run")


def _refuse_locks() -> None:
    def build(original: Any) -> Any:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        return flock

    wrap("fcntl", "flock", build)


def _no_hard_links(folder: Path) -> None:
    recipe = RECIPES[2]
    _succeeds(build_fit(recipe, folder, before=_refuse_links))
    require_same(recipe, folder / "run")


def _refuse_links() -> None:
    def link(*arguments: object, **named: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    os.link = link


# --- all of them ---------------------------------------------------------------------------------

_SHORT: list[tuple[str, Callable[[Path], None]]] = [
    ("file size limit while saving", _file_size_limit),
    ("disk full at a later save", partial(_full_disk, call=3)),
    ("disk too full to begin", _no_space_to_begin),
    ("disk full while features are stored", _full_cache_disk),
    ("disk full under the log and the metrics", _full_disk_for_metrics),
    ("/dev/shm full", _shared_memory_full),
    ("memory limit", _memory_limit),
    ("too many open files", _file_limit),
    ("worker killed", partial(_worker_lost, number=signal.SIGKILL)),
    ("HOME unset", partial(_home, value=None)),
    ("cache folder on a read-only file system", partial(_cache, kind="proc")),
    ("run folder closed to this user", _closed_run_folder),
    ("run folder on a read-only file system", _read_only_run_folder),
    ("no network", _no_network),
    ("terminal gone", _no_output),
    ("lock left by a killed run", _stale_lock),
    ("lock of another run", _held_lock),
    ("file system without locks", _no_locks),
    ("embed: disk full", partial(_full_disk_of, kind="embed")),
    ("predict into a file: disk full", partial(_full_disk_of, kind="predict")),
]
_MORE: list[tuple[str, Callable[[Path], None]]] = [
    ("disk full at the first save", partial(_full_disk, call=1)),
    ("disk full for good, then free again", _full_disk_then_free),
    ("MemoryError in a worker", _memory_error_in_worker),
    ("worker crashed", partial(_worker_lost, number=signal.SIGSEGV)),
    ("worker stopped for ever", partial(_worker_lost, number=signal.SIGSTOP)),
    ("every worker killed at the same file", _deadly_file),
    ("HOME does not exist", partial(_home, value="/nonexistent/home")),
    ("HOME is a file", partial(_home, value="/dev/null")),
    ("cache folder is a file", partial(_cache, kind="file")),
    ("cache folder closed to this user", partial(_cache, kind="closed")),
    ("data folder closed to writing", _read_only_data),
    ("no temporary folder", _no_temporary_folder),
    ("file system without hard links", _no_hard_links),
    ("embed: worker killed", _embed_worker_killed),
    ("real full disk (tmpfs)", _real_full_disk),
    ("real full /dev/shm (tmpfs)", _real_full_shared_memory),
]
