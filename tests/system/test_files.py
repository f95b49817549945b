"""Files are whole or absent, errors name the folder, and nothing temporary stays behind."""

import csv
import errno
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vtrain.data.image_sets import SkippedFile
from vtrain.errors import ExitCode, ResourceError, UsageError
from vtrain.system.files import atomic_write, encode_text, sweep_temporaries, write_text
from vtrain.system.json_csv import (
    format_csv_row,
    format_json_line,
    read_csv_cell,
    write_csv,
    write_json,
)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing past `size` bytes fails with EFBIG, which is the nearest thing to a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_content_replaces_the_old_one_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_new_file_gets_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


@pytest.mark.parametrize("error", [ValueError("bad row"), KeyboardInterrupt(), SystemExit(3)])
def test_failure_in_the_block_keeps_the_old_content(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_write(path) as stream:  # noqa: PT012
        stream.write(b"half of the new")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_full_disk_names_path_and_bytes_and_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    with (
        file_size_limit(1000),
        pytest.raises(ResourceError) as caught,
        atomic_write(path) as stream,
    ):
        stream.write(b"x" * 100_000)
    assert str(path) in caught.value.message
    assert "after 1,000 bytes" in caught.value.message
    assert caught.value.exit_code == ExitCode.RESOURCE
    assert path.read_text() == "old"
    assert names(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_is_full_only_at_the_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no space left after 5 bytes \([\d,]+ bytes free in"):
        write_text(tmp_path / "a.txt", "12345")
    assert names(tmp_path) == []


def test_disk_error_wrapped_by_a_library_is_still_found(tmp_path: Path) -> None:
    def library(stream: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904 - as torch does

    with pytest.raises(ResourceError, match="no space left"), atomic_write(tmp_path / "a") as out:
        library(out)


def test_other_operating_system_errors_in_the_block_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "absent.txt").read_bytes()


def test_device_failure_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ResourceError, match=r"a\.txt: Input/output error"):
        write_text(tmp_path / "a.txt", "x")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent does not exist"):
        write_text(tmp_path / "absent" / "a.txt", "x")


def test_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file: Not a directory"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_folder_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop the superuser
    with pytest.raises(UsageError) as caught:
        write_text(tmp_path / "a.txt", "x")
    assert f"folder {tmp_path}: Permission denied" in caught.value.message
    assert caught.value.hint


def test_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match="Read-only file system"):
        write_text(tmp_path / "a.txt", "x")


def test_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        write_text(tmp_path / ("n" * 300), "x")
    longest = tmp_path / ("n" * 255)
    write_text(longest, "x")
    assert longest.read_text() == "x"


def test_device_pipe_or_folder_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with pytest.raises(UsageError, match="not a regular file"):
            write_text(tmp_path / name, "x")
    with pytest.raises(UsageError, match="it is a folder"):
        write_text(tmp_path, "x")
    assert Path("/dev/null").is_char_device()


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "real.txt"
    target.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert names(target.parent) == ["real.txt"]


KILLED_WRITER = """
import os, sys
from pathlib import Path
from vtrain.system.files import atomic_write
with atomic_write(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    os.kill(os.getpid(), 9)
"""


def test_killed_process_leaves_the_old_content_and_its_leftover_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    leftover = next(tmp_path.glob(".a.txt.*.tmp"))
    assert sweep_temporaries(tmp_path) == [leftover]
    assert names(tmp_path) == ["a.txt"]


def test_sweep_spares_living_processes_and_other_files(tmp_path: Path) -> None:
    kept = [
        f".a.txt.{os.getpid()}-0123abcd.tmp",  # this process writes it right now
        f".a.txt.{os.getppid()}-0123abcd.tmp",
        ".editor.tmp",
        "a.txt.999999999-0123abcd.tmp",
    ]
    for name in kept:
        (tmp_path / name).write_text("x")
    assert sweep_temporaries(tmp_path) == []
    assert names(tmp_path) == sorted(kept)


def test_json_is_valid_whatever_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    odd = os.fsdecode(b"caf\xe9-\xc3\xa9.jpg")  # no UTF-8 in front, UTF-8 behind
    value = {"loss": math.nan, "rows": [1.5, -math.inf], "file": SkippedFile(Path(odd), "é <&>")}
    write_json(path, value)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "loss": None,
        "rows": [1.5, None],
        "file": {"path": odd, "reason": "é <&>"},
    }
    assert "é <&>" in text


def test_text_keeps_the_bytes_of_odd_file_names(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", os.fsdecode(b"caf\xe9 \xc3\xa9\n"))
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9 \xc3\xa9\n"


FORMULAS = ["=1+1", "+cmd", "-x", "@SUM(A1)", "\tx", "\r=x", "\n=x", "-1 cat", "'=1", "''@x", "'-1"]


@pytest.mark.parametrize("cell", FORMULAS)
def test_csv_cells_cannot_become_formulas(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    write_csv(path, ["path"], [[cell]])
    with path.open(newline="") as stream:
        assert list(csv.reader(stream)) == [["path"], ["'" + cell]]


@pytest.mark.parametrize("text", [*FORMULAS, "plain", "'", "''x", "-1", "1e3", "", "'tis"])
def test_csv_cells_tell_what_they_were_written_for(text: str) -> None:
    ((cell, _),) = csv.reader(io.StringIO(format_csv_row([text, ""]), newline=""))
    assert read_csv_cell(cell) == text


def test_text_that_no_encoding_takes_is_escaped() -> None:
    odd = "\ud800 \udc7f \udd00 \udfff"
    assert encode_text(odd) == b"\\ud800 \\udc7f \\udd00 \\udfff"
    assert encode_text("\udc80\udcff é") == b"\x80\xff \xc3\xa9"


def test_json_holds_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    names = {char: f"a{char}b" for char in "\x1b\x7f\x9b\u202e\u2028\ufeff\udcff\U000e0001\n"}
    write_json(tmp_path / "a.json", names)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == json.loads(format_json_line(names)) == names
    assert all(line.isprintable() for line in (*text.splitlines(), format_json_line(names)))


def test_csv_keeps_numbers_and_quotes_what_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows: list[list[object]] = [
        [-1, -0.5, "-1.5e-3", "+7"],
        ["a,b", 'say "x"', "line\nbreak", None],
        ["'", "a=b", "", 0],
    ]
    write_csv(path, ["a", "b", "c", "d"], iter(rows))
    with path.open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["a", "b", "c", "d"],
            ["-1", "-0.5", "-1.5e-3", "+7"],
            ["a,b", 'say "x"', "line\nbreak", ""],
            ["'", "a=b", "", "0"],
        ]
    assert b"\r" not in path.read_bytes()


def test_csv_keeps_the_bytes_of_odd_file_names(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["path"], [[Path(os.fsdecode(b"caf\xe9.jpg"))]])
    assert (tmp_path / "a.csv").read_bytes() == b"path\ncaf\xe9.jpg\n"


def test_csv_on_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with file_size_limit(10_000), pytest.raises(ResourceError, match="file size limit"):
        write_csv(tmp_path / "a.csv", ["n"], ([n] for n in range(100_000)))
    assert names(tmp_path) == []


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, vtrain.system.files; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
