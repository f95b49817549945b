"""Hostile, damaged, foreign and future files in place of checkpoints, models and weights."""

import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from tests.faults.case import Case
from tests.faults.hostile_content import checkpoint_contents, described_models, tensor_headers
from tests.faults.hostile_kinds import archives, foreign_contents, odd_paths, truncations
from tests.faults.hostile_pickles import gadget_files, lying_tensors, odd_pickles
from tests.faults.hostile_resume import resumed_runs, train
from tests.faults.made_files import build_small_classifier
from tests.faults.pickles import Content
from tests.helpers.forking import fork, wait
from vtrain.errors import ModelError
from vtrain.models.weights import load_weights
from vtrain.runs.checkpoint import load_checkpoint
from vtrain.runs.model_argument import load_model
from vtrain.system.reporter import SILENT

CPU = torch.device("cpu")
CANARY = "canary"
MEMORY = 1 << 30  # bytes that one load may take in addition
SECONDS = 20  # for a load that hangs; how long it may take is the suite's limit


def as_checkpoint(path: Path) -> None:
    """As `fit --resume` does."""
    load_checkpoint(path)


def as_model(path: Path) -> None:
    """As `-m FILE` does."""
    load_model(str(path), device=CPU, precision="fp32", reporter=SILENT)


def as_weights(path: Path) -> None:
    """As `fit model.weights=FILE` does."""
    load_weights(build_small_classifier(0), str(path), reporter=SILENT)


def as_own_weights(path: Path) -> None:
    """As `-m BACKBONE:FILE` does."""
    load_model(f"simple_cnn:{path}", device=CPU, precision="fp32", reporter=SILENT)


Load = Callable[[Path], None]
TORCH: tuple[Load, ...] = (as_checkpoint, as_weights, as_own_weights)
SAFETENSORS: tuple[Load, ...] = (as_model, as_weights)
ALL: tuple[Load, ...] = (*TORCH, as_model)


@dataclass(frozen=True, slots=True)
class Family:
    """Files of one kind.

    `make` gives names and what makes the file: its content, or a function that makes it in a folder
    and gives its path. In short every `stride`th is tried.
    """

    name: str
    make: Callable[[], Iterator[tuple[str, Content]]]
    loads: Sequence[Load]
    file_name: str
    stride: int = 1


FAMILIES = (
    Family("gadget", gadget_files, TORCH, "file.pth", 15),
    Family("pickle", odd_pickles, TORCH, "file.pth", 5),
    Family("tensor", lying_tensors, TORCH, "file.pth", 6),
    Family("archive", archives, TORCH, "file.pth", 4),
    Family("checkpoint with", checkpoint_contents, (as_checkpoint,), "last.ckpt", 20),
    Family("model with", described_models, (as_model,), "model.safetensors", 16),
    Family("safetensors with", tensor_headers, SAFETENSORS, "model.safetensors", 8),
    Family("foreign", foreign_contents, ALL, "file.pth", 6),
    Family("foreign model", foreign_contents, SAFETENSORS, "model.safetensors", 10),
    Family("cut off", truncations, ALL, "file", 12),
    Family("path:", odd_paths, ALL, "file", 3),
)

# What was once loaded, crashed, hung or took all memory: tried in short as well.
MENDED = frozenset(
    {
        "a key of 2^60 elements in an archive",
        "a set of 2^60 elements in the older format",
        "a key 200,000 levels deep in an archive",
        "a bytearray of 2 GB in an archive",
        "an attribute that shadows in an archive",
        "a negative number as format",
        "text as state.step",
        "text as batch size",
        "text as epochs in config",
        "NaN in model",
        "an unknown entry with a long name",
        "a tensor with a long name",
        "a backbone of a million letters",
        "a backbone of many gigabytes",
        "the large backbone regnet_y_128gf",
        "classes that are twice the same",
        "classes that are half a letter",
        "4-bit floats",
        "many tensors",
        "moments of another shape",
        "text as weight decay",
        "no average",
        "a history of other columns",
    }
)


def cases(full: bool) -> Iterator[Case]:
    """Every file loaded in every way; in short some files of every family, each in one way."""
    for family in FAMILIES:
        for number, (name, content) in enumerate(family.make()):
            chosen = family.loads
            if not full:
                tried = number % family.stride == 0 or name in MENDED
                turn = number // family.stride % len(chosen)
                chosen = chosen[turn : turn + 1] if tried else ()
            for load in chosen:
                title = f"{family.name} {name}, {load.__name__.replace('_', ' ')}"
                yield Case(title, partial(try_content, family.file_name, content, load))
    for name, resume in resumed_runs():
        if full or name in MENDED:
            yield Case(f"resume with {name}", partial(try_resume, resume))


def try_content(file_name: str, content: Content, load: Load, folder: Path) -> None:
    """Load the file as a user could: it is refused, and nothing of it is run."""
    path = folder / file_name
    made = content(folder) if callable(content) else content
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        path = made
    in_child(partial(refuse, load, path), folder)
    assert not (folder / CANARY).exists(), "code of the file was run"


def try_resume(resume: Callable[[Path], None], folder: Path) -> None:
    """Resume from the checkpoint; the run that it was made of is trained once."""
    train()
    in_child(resume, folder)


def refuse(load: Load, path: Path, folder: Path) -> None:
    """Load: a ModelError that says what it is about, in a few lines."""
    try:
        load(path)
    except ModelError as error:
        said = f"{error.message} {error.hint}"
    else:
        raise AssertionError(f"{load.__name__}: loaded")
    assert len(said) < 1500 + 12 * len(str(path)), f"{load.__name__}: {len(said)} letters"
    assert path.name[:50] in said.replace("\\n", "\n").replace("\\x00", "\0"), said
    assert "weights_only" not in said, said


def in_child(work: Callable[[Path], None], folder: Path) -> None:
    """Do the work in a process that may take so much time and memory; its error becomes ours."""
    report = folder / "report"

    def reported() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (size := own_size() + MEMORY, size))
        signal.alarm(SECONDS)
        try:
            work(folder)
        except BaseException as error:
            report.write_text(f"{type(error).__name__}: {error}"[:3000], errors="replace")
            raise

    with quiet():
        code = wait(fork(reported))
    assert code == 0, report.read_text() if report.exists() else f"ended with {code}"


def own_size() -> int:
    """Bytes of address space of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the traceback with which a child ends."""
    null, own = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(null)
        os.close(own)
