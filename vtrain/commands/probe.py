"""`vtrain probe`: backbones ranked on the user's own images."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import Compute, Json, Page, choose_workers, complete_backbones
from vtrain.commands.outcomes import require_page_name
from vtrain.errors import ModelError, UsageError
from vtrain.system.terminal import Console, data_stream, print_json, print_table, print_text
from vtrain.system.text import format_duration, one_line, quote_path

if TYPE_CHECKING:
    from vtrain.results.probe_result import ProbeResult

UNITS = {"": 60.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def probe(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="One subfolder for each class, or train/ and val/ with these."
        ),
    ],
    backbones: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            "-b",
            metavar="NAME[:WEIGHTS]",
            help="A backbone to try, as in -m; may be given again. Its published weights are "
            "downloaded if they are not here. Without it: a handful of good ones whose weights "
            "are here.",
            autocompletion=complete_backbones,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", min=10, help="Images to take, of each class in its share.")
    ] = 1000,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Leave out what would take longer altogether: 5 or 5m (minutes), 90s.",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch weights of default backbones as well.")
    ] = False,
    output: Page = None,
    as_json: Json = False,
    *,
    compute: Compute,
    console: Console,
) -> None:
    """Rank backbones on your own images.

    A linear probe and nearest neighbours on frozen features, cross-validated: nothing is trained
    but the probe. Features are kept, so that asking again takes seconds.

    \b
    vtrain probe photos/
    vtrain probe photos/ -b resnet50 -b convnext_tiny --budget 5m
    vtrain probe photos/ -b squeezenet1_0:weights.pth -o probe.html
    """
    from vtrain.results.probe_candidates import choose_candidates

    candidates = choose_candidates(backbones or [])
    seconds = None if budget is None else _read_budget(budget)
    require_page_name(output)
    from vtrain.results.probe import ProbeSettings, rank_backbones
    from vtrain.system.json_csv import to_plain
    from vtrain.system.machine import find_device

    settings = ProbeSettings(
        device=find_device(compute.device),
        images=images,
        budget=seconds,
        precision=compute.precision,
        batch_size=compute.batch_size,
        workers=choose_workers(compute.workers),
        download=download,
    )
    result, stop = rank_backbones(folder, candidates, settings, reporter=console)
    if as_json:
        failures = [{"path": str(each.path), "error": each.reason} for each in result.failures]
        print_json({"schema": 1, **to_plain(result), "failures": failures})
    else:
        _show_probe(result, console)
    if output is not None:
        from vtrain.pages.probe import write_probe_page

        write_probe_page(output, result)
        console.say(f"page: {quote_path(output)}")
    _require_complete(result, stop)


def _read_budget(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise UsageError(
            f"--budget {text!r} is no time", "give minutes or seconds, such as --budget 5m or 90s"
        )
    return float(found[1]) * UNITS[found[2]]


def _show_probe(result: "ProbeResult", console: Console) -> None:
    from vtrain.commands.terminal_plot import draw_plot
    from vtrain.results.probe_result import (
        COLUMNS,
        LEAST,
        LEGEND,
        RIGHT,
        describe_sample,
        label_backbones,
        next_command,
        table_rows,
    )

    print_table(COLUMNS, table_rows(result), right=RIGHT, least=LEAST)
    if len(result.backbones) > 1:
        points = {}
        for name, each in zip(label_backbones(result.backbones), result.backbones, strict=True):
            label = f"{name} (front)" if each.pareto else name
            points[label] = ([each.images_per_second], [100 * each.accuracy])
        title, x_title = "linear probe, %", "images/s"
        plot = draw_plot(points, data_stream(), title=title, x_title=x_title, log_x=True)
        print_text(f"\n{plot}")
    console.say(describe_sample(result))
    if len(result.backbones) > 1:
        for line in LEGEND:
            console.say(line)
    console.say(f"took {format_duration(result.seconds)}")
    print_text(f"recommended: {result.recommendation}")
    if command := next_command(result):
        print_text(f"next: {command}")


def _require_complete(result: "ProbeResult", stop: KeyboardInterrupt | None) -> None:
    """End as a signal, or a backbone that was named and failed, has it.

    Raises:
        InterruptedRunError, StoppedError: a signal came.
        ModelError: a backbone failed.
    """
    if stop is not None:
        from vtrain.system.signals import build_stop_error

        left = sum(each.kind == "stopped" for each in result.left_out)
        raise build_stop_error(
            stop,
            f"stopped with {left} of the backbones left",
            "run the same command again: features that were computed are kept",
        )
    failed = [each for each in result.left_out if each.kind == "failed"]
    if failed:
        lines = [f"  {one_line(each.model)}: {each.reason}" for each in failed]
        raise ModelError(
            f"{len(failed)} of the backbones could not be probed:\n" + "\n".join(lines),
            "the result is that of the others: repair these, or leave them out",
        )
