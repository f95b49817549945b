"""`vtrain explain`: where in its images a model sees a class."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtrain.commands.options import BatchSize, Device, Json, Model
from vtrain.commands.outcomes import require_all_answered, require_no_config
from vtrain.system.terminal import Console, print_json, print_line
from vtrain.system.text import format_percent

if TYPE_CHECKING:
    from vtrain.results.explanation_files import WrittenExplanation


def explain(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Images, folders, globs, or - for a list of paths on stdin."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="A new folder for pictures and maps."
        ),
    ],
    model: Model = None,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="The class to look for. Without it: what each image is predicted as.",
        ),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="STAGE",
            help="The stage of the backbone to look at: earlier ones are finer and less certain. "
            "Without it: the last that is a map; of a ViT the first.",
        ),
    ] = None,
    as_json: Json = False,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    *,
    console: Console,
) -> None:
    """Show where in its images a model sees a class.

    By Grad-CAM; a ViT by its attention. FOLDER gets NAME.overlay.png and NAME.map.npy
    ([H, W] float32 from 0 to 1, over the model's input) for each image, and
    explanations.json, which says where they lie in it.

    \b
    vtrain explain photos/ -o seen
    vtrain explain cat.jpg -o seen-dog -m resnet50 --class 'golden retriever'
    vtrain explain cat.jpg -o seen-layer3 -m runs/pets-001 --stage layer3
    """
    from vtrain.models.saliency import find_map_stage, name_method
    from vtrain.results.explain import explain_images
    from vtrain.results.explanation_files import (
        explanation_json,
        require_empty_folder,
        write_explanations,
    )
    from vtrain.results.inputs import FoundInputs
    from vtrain.runs.model_argument import load_model
    from vtrain.system.machine import find_device

    require_no_config("explain IMAGE -o FOLDER", *paths)
    require_empty_folder(output)
    inputs = FoundInputs(paths, sys.stdin.buffer, reporter=console)
    # Gradients in float32: there is little to compute, and a lower precision rounds them.
    loaded = load_model(model, device=find_device(device), precision="fp32", reporter=console)
    spec = loaded.classifier.spec
    chosen = find_map_stage(spec, stage).name
    explanations = explain_images(
        inputs, loaded, class_name=class_name, stage=chosen, batch_size=batch_size, reporter=console
    )
    about = {
        "model": loaded.source,
        "method": name_method(spec),
        "stage": chosen,
        "input_size": loaded.preprocessing.crop,
    }
    with console.progress(0, "explaining", data=True) as bar:

        def show(written: "WrittenExplanation") -> None:
            if as_json:
                print_json(explanation_json(written), indent=False)
            else:
                print_line(_format_explanation(written))
            bar.total = inputs.known
            bar.update(1)

        done = write_explanations(output, explanations, about=about, show=show)
    console.say(f"stage {chosen}, {done.count - done.failed:,} maps, listed in {done.index}")
    require_all_answered(done.failed, done.count)


def _format_explanation(written: "WrittenExplanation") -> str:
    """One line for people: `path: class 97.1 %, overlay`, or `path: error: reason`."""
    each = written.explanation
    if each.error is not None:
        return f"{each.path}: error: {each.error}"
    text = f"{each.explained} {format_percent(each.explained_probability)}"
    if each.explained != each.prediction:
        text += f" (predicted {each.prediction} {format_percent(each.probability)})"
    if not each.found:
        text += ", nothing speaks for it"
    return f"{each.path}: {text}, {written.overlay}"
