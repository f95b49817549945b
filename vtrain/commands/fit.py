"""`vtrain fit`: train what a config describes."""

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import Config, Overrides
from vtrain.commands.outcomes import reported_once
from vtrain.commands.usage_errors import RESUME_AUTO
from vtrain.errors import UsageError, VtrainError
from vtrain.runs.folder import LOG_NAME
from vtrain.system.terminal import Console, print_json, print_line
from vtrain.system.text import format_duration, one_line, quote_path

if TYPE_CHECKING:
    from vtrain.config.load import LoadedConfig
    from vtrain.runs.folder import FitResult
    from vtrain.system.processes import Processes
    from vtrain.system.reporter import Reporter


def fit(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run exactly where its checkpoint was; `--resume auto` starts one "
            "where there is none.",
        ),
    ] = False,
    resume_auto: Annotated[bool, typer.Option(RESUME_AUTO, hidden=True)] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the whole plan, with time and memory from a step of each phase, and stop.",
        ),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say at the end where the time went.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print the plan as JSON on stdout.")
    ] = False,
    *,
    console: Console,
) -> None:
    """Train what a config describes; the result is a run folder.

    \b
    vtrain fit flowers.yaml
    vtrain fit flowers.yaml train.epochs=20 optim.lr=3e-4
    vtrain fit flowers.yaml freeze=head model.backbone=mobilenet_v3_small
    vtrain fit flowers.yaml --dry-run
    vtrain fit flowers.yaml --resume
    torchrun --nproc-per-node=4 -m vtrain fit flowers.yaml
    """
    from vtrain.runs.settings import load_settings

    _require_sense(resume=resume or resume_auto, dry_run=dry_run, as_json=as_json, profile=profile)
    try:
        loaded = load_settings(config, overrides or [])
    except UsageError as error:
        if os.environ.get("RANK", "0") != "0":  # the first of several processes says it
            raise typer.Exit(int(error.exit_code)) from None
        raise
    # Read when torch is loaded: without it every process warns of a choice that is meant.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vtrain.runs.fit import fit as run_fit
    from vtrain.system.processes import read_processes

    processes = read_processes()
    if not processes.is_main:
        console = Console(quiet=True)
    with reported_once(processes):
        if dry_run:
            _show_plan(loaded, console, processes, as_json=as_json)
            return
        result = run_fit(
            loaded,
            resume="auto" if resume_auto else resume,
            profile=profile,
            reporter=console,
            processes=processes,
        )
    if processes.is_main:
        if loaded.config.train.report and not result.already_finished:
            _write_report(loaded.config.train.device, result.run_dir, console)
        _show_fit(result, console)


def _require_sense(*, resume: bool, dry_run: bool, as_json: bool, profile: bool) -> None:
    """Refuse options that exclude or need each other.

    Raises:
        UsageError: they do.
    """
    if dry_run and resume:
        raise UsageError(
            "--dry-run and --resume were both given", "leave one out: a plan is of a new run"
        )
    if dry_run and profile:
        raise UsageError(
            "--dry-run and --profile were both given", "leave one out: a profile is of a whole run"
        )
    if as_json and not dry_run:
        raise UsageError(
            "--json was given without --dry-run",
            "add --dry-run for the plan; a run's metrics are in metrics.jsonl of its folder",
        )


def _show_plan(
    loaded: "LoadedConfig", console: Console, processes: "Processes", *, as_json: bool
) -> None:
    from vtrain.commands.dry_run import build_dry_run_record, show_forecast, show_outline
    from vtrain.runs.dry_run import dry_run, require_room

    outline, forecast = dry_run(
        loaded,
        reporter=console,
        on_plan=lambda outline: None if as_json else show_outline(outline, console),
        processes=processes,
    )
    if not processes.is_main:
        return
    if as_json:
        print_json(build_dry_run_record(outline, forecast))
    else:
        show_forecast(outline, forecast, console)
    require_room(forecast, outline.run_dir)


def _write_report(device: str, run_dir: Path, console: Console) -> None:
    """Write the page of a run; the run is done, whatever comes of that."""
    from vtrain.pages.report.heat_maps import draw_heat_maps
    from vtrain.pages.report.report import write_report
    from vtrain.system.log_file import logged_to
    from vtrain.system.machine import find_device
    from vtrain.system.signals import StopRequest

    with ExitStack() as stack:
        reporter: Reporter = console
        with suppress(OSError):
            reporter = stack.enter_context(logged_to(run_dir / LOG_NAME, console))
        stack.enter_context(StopRequest(reporter))  # what is all but done is done first
        try:
            heat_maps = draw_heat_maps(run_dir, device=find_device(device))
            page = write_report(run_dir, heat_maps=heat_maps, force=True).page
        except Exception as error:
            reason = error.message if isinstance(error, VtrainError) else repr(error)
            again = f"vtrain report {one_line(run_dir)}"
            reporter.warn(f"the report could not be written: {reason:.300}; again: {again}")
        else:
            reporter.say(f"report: {one_line(page)}")


def _show_fit(result: "FitResult", console: Console) -> None:
    took = (
        "was finished already"
        if result.already_finished
        else f"took {format_duration(result.seconds)}"
    )
    console.say(
        f"{one_line(result.run_dir)} {took}: best epoch {result.best_epoch}, "
        f"val top-1 {result.val_top1:.4f}, macro F1 {result.val_macro_f1:.4f}"
        + (f", test top-1 {result.test_top1:.4f}" if result.test_top1 is not None else "")
    )
    console.say(f"next: vtrain predict IMAGE -m {quote_path(result.run_dir)}")
    print_line(str(result.run_dir))
