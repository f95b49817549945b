"""What commands refuse before any work, and how they end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vtrain.errors import DataError, DivergedError, InterruptedRunError, StoppedError, UsageError
from vtrain.system.text import one_line, quote_path

if TYPE_CHECKING:
    from vtrain.data.image_sets import SkippedFile
    from vtrain.system.processes import Processes

NAMED_AT_MOST = 20  # unreadable inputs that an error names


def require_one_form(*, as_json: bool, as_csv: bool) -> None:
    """Before any work: stdout carries one form of data."""
    if as_json and as_csv:
        raise UsageError("--json and --csv were both given", "choose one of them")


def require_no_config(command: str, *paths: str | Path) -> None:
    """Before any work: a config is for fit; `command` is one for images."""
    for path in map(Path, paths):
        if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
            continue
        from vtrain.config.run_files import RUNS
        from vtrain.runs.folder import find_run_names

        made = [run for run in find_run_names(RUNS) if Path(run).name.startswith(f"{path.stem}-")]
        use = f"vtrain {command} -m {quote_path(made[-1] if made else 'RUN')}"
        train = f"vtrain fit {quote_path(path)}"
        raise UsageError(
            f"{one_line(path)} is a config, expected images",
            f"to use what it trained: {use}" if made else f"to train: {train}; then: {use}",
        )


def require_place(path: Path, name: str) -> None:
    """Before any work: a file goes to a folder that is there; `name` is what the file is called."""
    shown = f"{name} {one_line(path)}"
    if path.is_dir():
        raise UsageError(f"{shown} is a folder, expected a file")
    if not path.parent.is_dir():
        raise UsageError(
            f"{shown}: its folder {one_line(path.parent)} does not exist",
            f"create it with: mkdir -p {quote_path(path.parent)}",
        )


def require_page_name(path: Path | None) -> None:
    """Before any work: a page, where one is asked for, goes to an .html file in a folder."""
    if path is None:
        return
    require_place(path, "page")
    if path.suffix.lower() not in (".html", ".htm"):
        better = quote_path(path.with_suffix(".html"))
        raise UsageError(f"page {one_line(path)} does not end with .html", f"write to {better}")


def require_all_readable(failures: Sequence["SkippedFile"], total: int) -> None:
    """Exit 3 where an image could not be read; every other one has been answered."""
    if not failures:
        return
    lines = [f"  {one_line(each.path)}: {each.reason}" for each in failures[:NAMED_AT_MOST]]
    if len(failures) > NAMED_AT_MOST:
        lines.append(f"  and {len(failures) - NAMED_AT_MOST} more")
    raise DataError(
        f"{len(failures)} of {total} images could not be used:\n" + "\n".join(lines),
        "the result is that of the others: repair or remove these",
    )


def require_all_answered(failed: int, count: int) -> None:
    """Exit 3 where an input could not be used; every other one has been answered."""
    if failed:
        raise DataError(f"{failed} of {count} inputs could not be used", "their lines say why")


@contextmanager
def reported_once(processes: "Processes") -> Iterator[None]:
    """Leave it to rank 0, and to a process that failed alone, to report what went wrong."""
    from vtrain.system.processes import PeerFailedError

    common = (PeerFailedError, StoppedError, InterruptedRunError, DivergedError)

    try:
        yield
    except common as error:
        if processes.is_main:
            raise
        raise typer.Exit(int(error.exit_code)) from None
