"""The commands: each parses its arguments, makes one library call, and shows the result.

What computes is imported inside the commands, so that help and config errors appear at once.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from vtrain.console import Console, print_json, print_line, print_table
from vtrain.errors import ExitCode, UsageError, VtrainError
from vtrain.run_folder import RUNS, find_run_names
from vtrain.zoo import backbone_names

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="""Train, evaluate and use image classifiers by transfer learning, from one YAML file.

    \b
    vtrain init photos/ -o photos.yaml     write a config for a folder of images
    vtrain fit photos.yaml                 train; the result is a folder below runs/
    vtrain predict holiday.jpg             classify with the newest model
    vtrain predict cat.jpg -m resnet50     classify with published ImageNet weights
    vtrain embed photos/ out.npy           one feature vector for each image
    """,
)


def complete_backbones(incomplete: str) -> list[str]:
    """Backbone names for the shell."""
    return [name for name in backbone_names() if name.startswith(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """What `-m` takes: finished runs and backbone names."""
    names = [*find_run_names(RUNS), *backbone_names()]
    return [name for name in names if name.startswith(incomplete)]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Run folder, model file, or a backbone such as resnet50, resnet50:IMAGENET1K_V1 or "
        "resnet50:weights.pth. Without it: the newest finished run below runs/.",
        autocompletion=complete_models,
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per forward pass.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes that read images; chosen where not given."),
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those in the file."),
]


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        print_line(f"vtrain {version('vtrain')}")
        raise typer.Exit


@app.callback()
def start(
    show: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def fit(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run exactly where its checkpoint was.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, and stop.")
    ] = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train what a config describes into a run folder.

    \b
    vtrain fit flowers.yaml
    vtrain fit flowers.yaml train.epochs=20 optim.lr=3e-4
    vtrain fit flowers.yaml freeze=head model.backbone=mobilenet_v3_small
    vtrain fit flowers.yaml --resume
    """
    from vtrain.config import load_config

    console = Console(quiet=quiet)
    loaded = load_config(config, overrides or [])
    from vtrain.fit import fit as run_fit

    result = run_fit(loaded, resume=resume, dry_run=dry_run, console=console)
    if result is None:
        return
    already = "was finished already" if result.already_finished else f"took {result.seconds:.0f} s"
    console.say(
        f"{result.run_dir} {already}: best epoch {result.best_epoch}, "
        f"val top-1 {result.val_top1:.4f}, macro F1 {result.val_macro_f1:.4f}"
        + (f", test top-1 {result.test_top1:.4f}" if result.test_top1 is not None else "")
    )
    console.say(f"next: vtrain predict IMAGE -m {result.run_dir}")
    print_line(str(result.run_dir))


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder with one subfolder for each class.")],
    model: Model = None,
    as_json: Json = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
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
    loaded = load_model(model, device=find_device(device), notify=console.say)
    with console.counter("evaluating") as progress:
        result, _ = run_evaluate(
            folder,
            loaded,
            batch_size=batch_size,
            workers=_workers(workers),
            notify=console.say,
            progress=progress,
        )
    if as_json:
        print_json(evaluation_json(result))
    else:
        _show_evaluation(result)
    _fail_if_unreadable(
        console, [(str(each.path), each.reason) for each in result.failures], result.count
    )


def _show_evaluation(result: Any) -> None:
    print_line(
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f}, macro F1 {result.macro_f1:.4f}, "
        f"loss {result.loss:.4f}, {result.count} images"
    )
    print_table(
        ("class", "precision", "recall", "F1", "images"),
        [
            (
                row.name,
                f"{row.precision:.3f}",
                f"{row.recall:.3f}",
                f"{row.f1:.3f}",
                f"{row.support}",
            )
            for row in result.per_class
            if row.support
        ],
        right=(1, 2, 3, 4),
    )


@app.command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(help="Images, folders, globs, or - for a list of paths on stdin."),
    ],
    model: Model = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Classes to show.")] = 5,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify images: one line for every input, in order.

    \b
    vtrain predict holiday.jpg
    vtrain predict photos/ 'more/*.png' -m runs/flowers-001 --csv > answers.csv
    vtrain predict cat.jpg -m resnet50 --top-k 3 --json
    """
    from vtrain.checkpoint import load_model
    from vtrain.predict import find_inputs
    from vtrain.predict import predict as run_predict
    from vtrain.runtime import find_device

    if as_json and as_csv:
        raise UsageError("--json and --csv were both given", "choose one of them")
    console = Console(quiet=quiet)
    inputs = find_inputs(paths, sys.stdin.buffer, notify=console.say)
    loaded = load_model(model, device=find_device(device), notify=console.say)
    answers = run_predict(
        inputs, loaded, top_k=top_k, batch_size=batch_size, workers=_workers(workers)
    )
    show = _prediction_printer(as_json, as_csv, min(top_k, len(loaded.classes)))
    failures = []
    with console.progress(len(inputs), "predicting") as bar:
        for answer in answers:
            show(answer)
            bar.update(1)
            if answer.error is not None:
                failures.append((answer.path, answer.error))
    _fail_if_unreadable(console, failures, len(inputs) - len(failures), named=False)


def _prediction_printer(as_json: bool, as_csv: bool, top_k: int) -> Any:
    from vtrain.predict import (
        format_prediction,
        prediction_csv_header,
        prediction_csv_row,
        prediction_json,
    )

    if as_json:
        return lambda answer: print_json(prediction_json(answer), indent=None)
    if as_csv:
        from vtrain.files import format_csv_row

        print_line(format_csv_row(prediction_csv_header(top_k)))
        return lambda answer: print_line(format_csv_row(prediction_csv_row(answer, top_k)))
    return lambda answer: print_line(format_prediction(answer))


@app.command()
def embed(
    folder: Annotated[Path, typer.Argument(help="Folder of images, at any depth, or one image.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.npy", help="The array to write.")],
    model: Model = None,
    layer: Annotated[
        str,
        typer.Option(help="penultimate, pooled, logits, or a stage of the backbone."),
    ] = "penultimate",
    feature_maps: Annotated[
        bool, typer.Option("--feature-maps", help="Keep the spatial extent: [N, C, H, W].")
    ] = False,
    as_json: Json = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Feature vectors of images: OUT.npy [N, D] float32, and OUT.csv with row, path, status.

    \b
    vtrain embed photos/ photos.npy
    vtrain embed photos/ photos.npy -m vit_b_16
    vtrain embed photos/ maps.npy -m resnet50 --layer layer3 --feature-maps
    """
    from vtrain.checkpoint import load_model
    from vtrain.embed import embed as run_embed
    from vtrain.records import to_plain
    from vtrain.runtime import find_device

    console = Console(quiet=quiet)
    loaded = load_model(model, device=find_device(device), notify=console.say)
    with console.counter("embedding") as progress:
        result = run_embed(
            folder,
            output,
            loaded,
            layer=layer,
            feature_maps=feature_maps,
            batch_size=batch_size,
            workers=_workers(workers),
            notify=console.say,
            progress=progress,
        )
    if as_json:
        print_json({"schema": 1, **to_plain(result)})
    else:
        shape = "x".join(str(size) for size in (result.count, *result.dim))
        print_line(f"{result.output}: {shape} float32, paths in {result.index}")
    _fail_if_unreadable(
        console,
        [(str(each.path), each.reason) for each in result.failures],
        result.count - len(result.failures),
    )


@app.command()
def backbones(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this one's stages.", autocompletion=complete_backbones),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=16, help="Input size in pixels.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The zoo: parameters, cost, published accuracy, size, and when to use what.

    \b
    vtrain backbones
    vtrain backbones resnet50
    vtrain backbones vit_b_16 --image-size 384
    """
    from vtrain.zoo import find_backbone

    if name is None:
        _list_backbones(as_json)
        return
    spec = find_backbone(name)
    from vtrain.models.backbones import describe_facts, describe_stages

    stages = describe_stages(spec, image_size=image_size)
    facts = describe_facts(spec, image_size=image_size)
    if as_json:
        from vtrain.records import to_plain

        print_json(
            {"schema": 1, **to_plain(spec), "stages": to_plain(stages), "facts": list(facts)}
        )
        return
    for line in (f"{spec.name}: {spec.note}", *facts):
        print_line(line)
    print_table(
        ("stage", "output", "parameters", "multiply-adds"),
        [
            (
                stage.name,
                "x".join(str(size) for size in stage.shape),
                f"{stage.params:,}",
                f"{stage.multiply_adds / 1e9:.3f} G",
            )
            for stage in stages
        ],
        right=(1, 2, 3),
    )


def _list_backbones(as_json: bool) -> None:
    from vtrain.records import to_plain
    from vtrain.zoo import find_backbone

    specs = [find_backbone(name) for name in backbone_names()]
    if as_json:
        print_json({"schema": 1, "backbones": to_plain(specs)})
        return
    print_table(
        ("backbone", "params", "GFLOPs", "px", "top-1", "MB", "when to use it"),
        [
            (
                spec.name,
                f"{spec.params / 1e6:.1f}M",
                f"{spec.gflops:.2f}",
                str(spec.image_size),
                "-" if spec.top1 is None else f"{spec.top1:.1f}",
                "-" if spec.file_size_mb is None else f"{spec.file_size_mb:.0f}",
                spec.note,
            )
            for spec in specs
        ],
        right=(1, 2, 3, 4, 5),
    )


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder of images, one subfolder a class.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="CONFIG", help="Where to write it."),
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Backbone to train.", autocompletion=complete_backbones)
    ] = "resnet18",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Look at a folder of images and write a commented config for it.

    \b
    vtrain init photos/
    vtrain init photos/ -o photos.yaml --backbone mobilenet_v3_small
    """
    from vtrain.init import build_config_text, inspect_folder, write_config

    console = Console(quiet=quiet)
    path = output or Path(f"{folder.resolve().name}.yaml")
    summary = inspect_folder(folder)
    write_config(path, build_config_text(summary, backbone=backbone))
    for line in summary.lines():
        console.say(line)
    console.say(f"next: vtrain fit {path}")
    print_line(str(path))


@app.command("config")
def show_config(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole config as it would be used, and where each value came from.

    \b
    vtrain config flowers.yaml
    vtrain config flowers.yaml optim.lr=1e-4
    """
    from vtrain.config import dump_config, load_config

    loaded = load_config(config, overrides or [])
    if as_json:
        print_json(
            {
                "schema": 1,
                "config": loaded.config.model_dump(mode="json"),
                "origins": loaded.origins,
            }
        )
    else:
        print_line(dump_config(loaded.config, loaded.origins).rstrip("\n"))


@app.command()
def schema(quiet: Quiet = False, debug: Debug = False) -> None:
    """JSON Schema of the config, for editors.

    \b
    vtrain schema > vtrain.schema.json
    """
    from vtrain.config import json_schema

    print_json(json_schema())


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
    seed: Annotated[int, typer.Option(help="Another seed draws another set.")] = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw a small data set of five shapes, to try things with.

    \b
    vtrain sample shapes/
    """
    from vtrain.data.sample import draw_sample

    console = Console(quiet=quiet)
    for images in draw_sample(folder, seed=seed):
        console.say(f"{images.root}: {len(images)} images of {', '.join(images.classes)}")
    print_line(str(folder))


@app.command()
def env(as_json: Json = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Versions and devices, for bug reports.

    \b
    vtrain env
    vtrain env --json
    """
    from vtrain.runtime import describe_environment

    environment = describe_environment()
    if as_json:
        print_json({"schema": 1, **environment})
        return
    for name, value in environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        print_line(f"{name}: {value}")


def _workers(given: int | None) -> Any:
    return "auto" if given is None else given


def _fail_if_unreadable(
    console: Console, failures: Sequence[tuple[str, str]], good: int, *, named: bool = True
) -> None:
    """Exit 3 where an input could not be used; every good one has been answered."""
    if not failures:
        return
    if named:
        for path, reason in failures:
            console.warn(f"{path}: {reason}")
    console.warn(f"{len(failures)} of {len(failures) + good} inputs could not be used")
    raise typer.Exit(ExitCode.DATA)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    console = Console()
    try:
        return int(app(arguments, prog_name="vtrain", standalone_mode=False) or 0)
    except VtrainError as error:
        if debug:
            raise
        console.error(error)
        return int(error.exit_code)
    except typer.TyperException as error:
        command = next((word for word in arguments if not word.startswith("-")), "")
        known = command if command in {info.name for info in app.registered_commands} else ""
        hint = f"type: vtrain {known} --help".replace("  ", " ")
        console.error(UsageError(error.format_message().rstrip("."), hint))
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, typer.Abort):
        console.error(VtrainError("interrupted"))
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of stdout has gone, as with `| head`: not an error worth a word.
        sys.stderr.close()
        return int(ExitCode.OK)
    except Exception as error:
        if debug:
            raise
        console.error(
            VtrainError(
                f"unexpected {type(error).__name__}: {error}",
                "run the command again with --debug, and report what it prints with `vtrain env`",
            )
        )
        return int(ExitCode.UNEXPECTED)
