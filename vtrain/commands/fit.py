"""`vtrain fit`: train what a config describes."""

import os
from typing import Annotated, Any

import typer

from vtrain.commands.options import Config, Debug, Overrides, Quiet
from vtrain.commands.outcomes import quote_path
from vtrain.commands.together import told_once
from vtrain.console import Console, format_duration, one_line, print_line
from vtrain.errors import UsageError
from vtrain.usage import RESUME_AUTO


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
        bool, typer.Option("--dry-run", help="Show what would be trained, and stop.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say at the end where the time went.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train what a config describes; the result is a run folder.

    \b
    vtrain fit flowers.yaml
    vtrain fit flowers.yaml train.epochs=20 optim.lr=3e-4
    vtrain fit flowers.yaml freeze=head model.backbone=mobilenet_v3_small
    vtrain fit flowers.yaml --resume
    torchrun --nproc-per-node=4 -m vtrain fit flowers.yaml
    """
    from vtrain.config import load_config

    try:
        loaded = load_config(config, overrides or [])
    except UsageError as error:
        if os.environ.get("RANK", "0") != "0":  # the first of several processes says it
            raise typer.Exit(int(error.exit_code)) from None
        raise
    # Read when torch is loaded: without it every process warns of a choice that is meant.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from vtrain.distributed import read_process_group
    from vtrain.fit import fit as run_fit

    group = read_process_group()
    console = Console(quiet=quiet or not group.is_main)
    with told_once(group):
        result = run_fit(
            loaded,
            resume="auto" if resume_auto else resume,
            dry_run=dry_run,
            profile=profile,
            console=console,
            group=group,
        )
    if result is not None and group.is_main:
        _show_fit(result, console)


def _show_fit(result: Any, console: Console) -> None:
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
