"""`vtrain evaluate`: metrics of a model on a labelled folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vtrain.commands.options import (
    BatchSize,
    Debug,
    Device,
    Json,
    Model,
    PrecisionName,
    Quiet,
    Workers,
    choose_workers,
)
from vtrain.commands.outcomes import require_all_readable
from vtrain.console import Console, print_json, print_line, print_table


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="One subfolder for each class.")],
    model: Model = None,
    as_json: Json = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Metrics of a model on a labelled folder.

    \b
    vtrain evaluate flowers/val
    vtrain evaluate flowers/test -m runs/flowers-001 --json
    """
    from vtrain.checkpoint import load_model
    from vtrain.evaluate import evaluate as run_evaluate
    from vtrain.evaluate import evaluation_json
    from vtrain.runtime import find_device

    console = Console(quiet=quiet)
    loaded = load_model(model, device=find_device(device), precision=precision, notify=console.say)
    with console.counter("evaluating") as progress:
        result, _ = run_evaluate(
            folder,
            loaded,
            batch_size=batch_size,
            workers=choose_workers(workers),
            notify=console.say,
            progress=progress,
        )
    if as_json:
        print_json(evaluation_json(result))
    else:
        _show_evaluation(result)
    require_all_readable(result.failures, result.count + len(result.failures))


def _show_evaluation(result: Any) -> None:
    print_line(
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f}, macro F1 {result.macro_f1:.4f}, "
        f"loss {result.loss:.4f}, {result.count} images"
    )
    print_table(
        ("class", "precision", "recall", "F1", "images"),
        [
            (row.name, *(f"{x:.3f}" for x in (row.precision, row.recall, row.f1)), str(row.support))
            for row in result.per_class
            if row.support
        ],
        right=(1, 2, 3, 4),
    )
