"""Exit codes and error messages of the contract, whatever goes wrong."""

import errno
import resource
import subprocess
from pathlib import Path

import pytest
import torch

import vtrain.runs.settings
from tests.helpers.program import VTRAIN, Program, assert_refused, environment
from tests.helpers.tiny import break_image, draw_labelled
from vtrain.errors import (
    ConfigError,
    DataError,
    DivergedError,
    ExitCode,
    ImageError,
    InterruptedRunError,
    ModelError,
    ResourceError,
    RunLockedError,
    StoppedError,
    UsageError,
    VtrainError,
)
from vtrain.runs.folder import lock_run
from vtrain.system.reporter import SILENT


def raise_in_command(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    patch.setattr(vtrain.runs.settings, "load_settings", fail)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (VtrainError, 1),
        (UsageError, 2),
        (ConfigError, 2),
        (DataError, 3),
        (ImageError, 3),
        (ModelError, 4),
        (ResourceError, 5),
        (DivergedError, 6),
        (RunLockedError, 7),
        (StoppedError, 75),
        (InterruptedRunError, 130),
    ],
)
@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["", "quiet"])
def test_each_error_has_its_code_and_its_two_lines(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[VtrainError],
    code: int,
    quiet: list[str],
) -> None:
    raise_in_command(monkeypatch, kind("it broke at x.jpg, expected y", "mend it"))
    done = program("config", "c.yaml", *quiet)
    assert_refused(done, code)
    assert done.err == "error: it broke at x.jpg, expected y\nhint: mend it\n"


def test_the_codes_are_those_of_the_contract() -> None:
    assert sorted(ExitCode) == [0, 1, 2, 3, 4, 5, 6, 7, 75, 130]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("width"), 1, "error: unexpected KeyError: 'width'"),
        (ValueError("first line\nsecond line"), 1, "error: unexpected ValueError: first line\n"),
        (AssertionError(), 1, "error: unexpected AssertionError\n"),
        (EOFError(), 1, "error: unexpected EOFError\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "error: unexpected BrokenPipeError"),
        (MemoryError(), 5, "error: out of memory\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "error: no space left"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 5, "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal"), 5, "a loader worker died"),
        (KeyboardInterrupt(), 130, "error: interrupted\nhint: run the same command again\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_that_nobody_raised_on_purpose(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    raise_in_command(monkeypatch, error)
    done = program("config", "c.yaml")
    assert_refused(done, code, message)
    assert "second line" not in done.err
    if code == 1:
        assert "hint: run the command again with --debug" in done.err


@pytest.mark.parametrize("error", [DataError("no images", "look"), KeyError("width")])
def test_debug_adds_a_traceback_and_nothing_else(
    program: Program, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    raise_in_command(monkeypatch, error)
    plain, debugged = program("config", "c.yaml"), program("config", "c.yaml", "--debug")
    assert debugged.code == plain.code
    assert debugged.out == ""
    assert debugged.err.startswith("Traceback (most recent call last):")
    assert "in fail" in debugged.err
    assert debugged.err.endswith(plain.err)


def test_wrong_path(empty: Path, program: Program) -> None:
    assert_refused(program("fit", "nix.yaml"), 2, "nix.yaml: no such file", "vtrain init FOLDER")
    assert_refused(program("init", "nix"), 3, "nix", "relative to the working directory")


def test_config_mistakes_are_all_in_one_report(empty: Path, program: Program) -> None:
    Path("c.yaml").write_text(
        "model: {backbone: resnet5}\ndata: {train: a, val: b, batchsize: 3}\noptim: {lr: fast}\n"
    )
    for command in ("fit", "config"):
        done = program(command, "c.yaml", "train.epochs=0")
        assert_refused(done, 2, "c.yaml:1:19: model.backbone: unknown backbone 'resnet5'")
        for part in ("c.yaml:2:", "c.yaml:3:", "did you mean resnet50", "batch_size", "train.ep"):
            assert part in done.err


def test_unreadable_images_end_a_run_before_it_starts(folder: Path, program: Program) -> None:
    bad = break_image(Path("images/train/ant/bad.jpg"))
    before = sorted(Path("runs").iterdir())
    assert_refused(program("fit", "tiny.yaml"), 3, str(bad), "data.on_bad_image=skip")
    assert sorted(Path("runs").iterdir()) == before


def test_class_that_only_validation_has(folder: Path, program: Program) -> None:
    draw_labelled(Path("images/val"), {"dog": 1})
    assert_refused(program("fit", "tiny.yaml", "-q"), 3, "dog")


def test_model_that_does_not_exist(folder: Path, program: Program) -> None:
    done = program("predict", "images", "-m", "runs/tiny-01")
    assert_refused(done, 4, "no model 'runs/tiny-01'", "did you mean runs/tiny-001?")
    done = program("evaluate", "images/val", "-m", "resnet5")
    assert_refused(done, 4, "no model 'resnet5'", "did you mean resnet50?")


def test_damaged_model(folder: Path, program: Program) -> None:
    model = Path("runs/tiny-001/model.safetensors")
    content = bytearray(model.read_bytes())
    content[-100] ^= 4
    model.write_bytes(content)
    for command in (
        ["predict", "images"],
        ["evaluate", "images/val"],
        ["embed", "images", "o.npy"],
    ):
        done = program(*command)
        assert done.code == 4
        assert f"error: {model}" in done.err
    assert not Path("o.npy").exists()


def test_loss_that_is_not_finite(
    folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Infinite(torch.nn.CrossEntropyLoss):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return super().forward(logits, labels) * float("inf")

    monkeypatch.setattr("vtrain.runs.trainer_setup.build_loss", lambda **_: Infinite())
    assert_refused(program("fit", "tiny.yaml"), 6, "not finite at step 1", "lower optim.lr")


def test_run_folder_in_use(folder: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtrain.runs.folder.LOCK_WAIT_SECONDS", 0.1)
    with lock_run(Path("runs/tiny-001"), reporter=SILENT):
        assert_refused(program("fit", "tiny.yaml", "--resume"), 7, "in use", "hint: wait")
    assert program("fit", "tiny.yaml", "--resume").code == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_disk_that_is_full_where_the_output_goes(empty: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*VTRAIN, "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert done.returncode == 5
    assert done.stderr.startswith("error: cannot write to stdout: No space left on device\nhint: ")
    assert len(done.stderr.splitlines()) == 2


def test_file_that_may_not_grow(folder: Path, program: Program) -> None:
    # As on a full disk: the checkpoint does not fit, and the run says so.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        done = program("fit", "tiny.yaml", "run_dir=runs/full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(done, 5, "error: cannot write runs/full/", "a file size limit")
    assert not list(Path("runs/full").glob(".*.tmp"))


@pytest.mark.parametrize(
    ("redirected", "code", "talk"),
    [
        ("schema >&-", 0, ""),
        ("fit nix.yaml 2>&-", 2, ""),
        ("fit nix.yaml >&-", 2, "error: nix.yaml: no such file"),
        ("fit nix.yaml >&- 2>&-", 2, ""),
        ("fit nix.yaml <&-", 2, "error: nix.yaml: no such file"),
    ],
)
def test_streams_that_are_closed(empty: Path, redirected: str, code: int, talk: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{VTRAIN[0]}' -m vtrain {redirected}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(talk)
    assert bool(done.stderr) == bool(talk)
