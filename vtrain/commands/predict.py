"""`vtrain predict`: the most probable classes of images."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtrain.commands.options import Compute, Csv, Json, Listed, Model, Raw, Tta, choose_workers
from vtrain.commands.outcomes import require_all_answered, require_no_config, require_one_form
from vtrain.errors import UsageError
from vtrain.system.terminal import Console, print_csv_row, print_json, print_line
from vtrain.system.text import format_percent

if TYPE_CHECKING:
    from vtrain.results.inputs import FoundInputs
    from vtrain.results.predict import Prediction


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Images, folders, tars, lists, globs, or - for paths on stdin."
        ),
    ],
    model: Model = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", min=1, help="Classes to show.")
    ] = 5,
    as_json: Json = False,
    as_csv: Csv = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to a new .jsonl or .csv file instead."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last whole answer of FILE.")
    ] = False,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            min=0,
            max=1,
            help="Answer `unknown` where the most probable class has less than P, 0 to 1.",
        ),
    ] = None,
    max_distance: Annotated[
        float | None,
        typer.Option(
            metavar="D",
            min=0,
            help="Answer `unknown` for images further than D from the training images; 95 % of the "
            "validation images are nearer than 1.",
        ),
    ] = None,
    raw: Raw = False,
    tta: Tta = False,
    *,
    listed: Listed,
    compute: Compute,
    console: Console,
) -> None:
    """Classify images: one line for every input, in order.

    \b
    vtrain predict holiday.jpg
    vtrain predict photos/ 'more/*.png' -m runs/flowers-001 --csv > answers.csv
    vtrain predict cat.jpg -m resnet50 --top-k 3 --json
    vtrain predict photos/ --min-confidence 0.8 --max-distance 1.5
    find photos -name '*.jpg' | vtrain predict - -o answers.jsonl --resume
    """
    from vtrain.results.inputs import FoundInputs
    from vtrain.results.predict import Answering
    from vtrain.results.predict import predict as run_predict
    from vtrain.results.prediction_files import choose_form, require_new, write_predictions

    require_no_config("predict IMAGE", *paths)
    require_one_form(as_json=as_json, as_csv=as_csv)
    if resume and output is None:
        raise UsageError("--resume needs the --output FILE that it goes on with")
    form = None if output is None else choose_form(output, as_json=as_json, as_csv=as_csv)
    if output is not None and not resume:
        require_new(output)
    layout = listed.build_layout(paths)
    inputs = FoundInputs(paths, sys.stdin.buffer, layout=layout, reporter=console)
    loaded = compute.load_model(model, console)
    asked: dict[str, Any] = {
        "top_k": top_k,
        "answering": Answering(raw, tta, min_confidence, max_distance),
        "batch_size": compute.batch_size,
        "workers": choose_workers(compute.workers),
        "reporter": console,
    }
    if output is not None and form is not None:
        written = write_predictions(output, inputs, loaded, form=form, resume=resume, **asked)
        print_line(f"{output}: {written.count:,} answers")
        require_all_answered(written.failed, written.count)
        return
    answers = run_predict(inputs, loaded, **asked)
    show = _build_printer(as_json, as_csv, min(top_k, len(loaded.classes)))
    _show_predictions(answers, inputs, show, console)


def _show_predictions(
    answers: Iterable["Prediction"],
    inputs: "FoundInputs",
    show: Callable[["Prediction"], None],
    console: Console,
) -> None:
    failed = 0
    with console.progress(0, "predicting", data=True) as bar:
        for answer in answers:
            show(answer)
            bar.total = inputs.known
            bar.update(1)
            failed += answer.error is not None
    require_all_answered(failed, inputs.known)


def _build_printer(as_json: bool, as_csv: bool, top_k: int) -> Callable[["Prediction"], None]:
    from vtrain.results.predict import prediction_csv_header, prediction_csv_row, prediction_json

    if as_json:
        return lambda answer: print_json(prediction_json(answer), indent=False)
    if as_csv:
        print_csv_row(prediction_csv_header(top_k))
        return lambda answer: print_csv_row(prediction_csv_row(answer, top_k))
    return lambda answer: print_line(format_prediction(answer))


def format_prediction(prediction: "Prediction") -> str:
    """One line for people: `path: class 97.1 %, class 2.0 %`, or `path: error: reason`."""
    from vtrain.results.predict import UNKNOWN

    if prediction.error is not None:
        return f"{prediction.path}: error: {prediction.error}"
    named = ", ".join(
        f"{each.name} {format_percent(each.probability)}" for each in prediction.predictions
    )
    far = prediction.distance is not None and prediction.distance > 1
    unlike = f"unlike the training images (distance {prediction.distance:.2f})" if far else ""
    if prediction.rejected is not None:
        reason = unlike or ("not sure" if prediction.rejected == "confidence" else "too far")
        return f"{prediction.path}: {UNKNOWN}: {reason}; {named}"
    return f"{prediction.path}: {named}" + (f"; {unlike}" if far else "")
