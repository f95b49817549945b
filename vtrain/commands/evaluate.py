"""`vtrain evaluate`: metrics of a model on a labelled folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import Compute, Json, Listed, Model, Raw, Tta, choose_workers
from vtrain.commands.outcomes import require_all_readable, require_no_config
from vtrain.system.terminal import Console, print_json, print_line, print_table

if TYPE_CHECKING:
    from vtrain.runs.evaluation_files import EvaluationResult


def evaluate(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="One subfolder for each class; or a tar or list."),
    ],
    model: Model = None,
    as_json: Json = False,
    raw: Raw = False,
    tta: Tta = False,
    *,
    listed: Listed,
    compute: Compute,
    console: Console,
) -> None:
    """Metrics of a model on a labelled folder.

    \b
    vtrain evaluate flowers/val
    vtrain evaluate flowers/test -m runs/flowers-001 --json
    vtrain evaluate test.csv --columns path=image_id,label=breed --root photos
    """
    from vtrain.results.evaluate import evaluate as run_evaluate
    from vtrain.runs.evaluation_files import evaluation_json

    require_no_config("evaluate FOLDER", folder)
    layout = listed.build_layout([folder])
    loaded = compute.load_model(model, console)
    result, _ = run_evaluate(
        folder,
        loaded,
        batch_size=compute.batch_size,
        workers=choose_workers(compute.workers),
        raw=raw,
        tta=tta,
        layout=layout,
        reporter=console,
    )
    if as_json:
        print_json(evaluation_json(result))
    else:
        _show_evaluation(result, console)
    require_all_readable(result.failures, result.count + len(result.failures))


def _show_evaluation(result: "EvaluationResult", console: Console) -> None:
    print_line(
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f}, macro F1 {result.macro_f1:.4f}, "
        f"loss {result.loss:.4f}, {result.count} images"
    )
    print_line(
        f"95 % intervals: top-1 {_interval(result.top1_interval)}, "
        f"macro F1 {_interval(result.macro_f1_interval)}; weighted F1 {result.weighted_f1:.4f}"
    )
    if calibration := result.calibration:
        print_line(
            f"calibration error {calibration.ece:.4f}, {calibration.ece_raw:.4f} without the "
            f"temperature {calibration.temperature:.3f}"
        )
    print_table(
        ("class", "precision", "95 %", "recall", "95 %", "F1", "images"),
        [
            (
                row.name,
                f"{row.precision:.3f}",
                _interval(row.precision_interval),
                f"{row.recall:.3f}",
                _interval(row.recall_interval),
                f"{row.f1:.3f}",
                str(row.support),
            )
            for row in result.per_class
            if row.support
        ],
        right=(1, 2, 3, 4, 5, 6),
    )
    for warning in result.warnings:
        console.warn(warning)


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
