"""The commands: each parses its arguments, makes one library call, and shows the result.

What computes is imported inside the commands, so that help and config errors appear at once.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from vtrain.console import (
    Console,
    OutputClosedError,
    format_bytes,
    format_duration,
    is_output_closed,
    one_line,
    open_missing_streams,
    print_csv_row,
    print_json,
    print_line,
    print_table,
    print_text,
)
from vtrain.errors import (
    DataError,
    DivergedError,
    ExitCode,
    InterruptedRunError,
    StoppedError,
    UsageError,
)
from vtrain.usage import RESUME_AUTO, FitCommand, PlainCommand, explain_error

COMPLETE_VARIABLE = "_VTRAIN_COMPLETE"  # what Typer's shell scripts set
NAMED_AT_MOST = 20  # unreadable inputs that an error names
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
    help="""Train, evaluate and use image classifiers by transfer learning, from one YAML file.

    \b
    vtrain init photos/ -o photos.yaml    write a config for a folder of images
    vtrain fit photos.yaml                train into a new folder below runs/
    vtrain predict holiday.jpg            classify with the newest model
    vtrain predict cat.jpg -m resnet50    classify with ImageNet weights
    vtrain embed photos/ out.npy          write one feature vector for each image
    """,
)
command = partial(app.command, cls=PlainCommand)


def complete_backbones(incomplete: str) -> list[str]:
    """Backbone names for the shell."""
    from vtrain.zoo import backbone_names

    return [name for name in backbone_names() if name.startswith(incomplete)]


def complete_models(incomplete: str) -> list[str]:
    """What `-m` takes: finished runs and backbone names."""
    from vtrain.run_folder import RUNS, find_run_names

    runs = [name for name in find_run_names(RUNS) if name.startswith(incomplete)]
    return [*runs, *complete_backbones(incomplete)]


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Run folder, model file, or a backbone such as resnet50, resnet50:IMAGENET1K_V1 or "
        "resnet50:weights.pth. Without it: the newest finished run below runs/.",
        autocompletion=complete_models,
    ),
]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 or mps.")
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", min=1, help="Images per forward pass.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", min=0, help="Processes that read images; chosen where not given."
    ),
]
PrecisionName = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        help="What the backbone computes in: auto (fastest that is safe), fp32, bf16 or fp16.",
    ),
]
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE ...]",
        help="Settings that replace those in the file, such as train.epochs=5.",
    ),
]


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("vtrain")
        except PackageNotFoundError:
            number = "(not installed: running from its source)"
        print_line(f"vtrain {number}")
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    show: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What stands before the command."""
    if context.invoked_subcommand is None:
        Console().say(f"{context.get_help()}\n")
        raise UsageError("no command was given", "start with: vtrain init FOLDER")


@app.command(cls=FitCommand)
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
    with _told_once(group):
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
    console.say(f"next: vtrain predict IMAGE -m {_quote(result.run_dir)}")
    print_line(str(result.run_dir))


@command()
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
            workers=_workers(workers),
            notify=console.say,
            progress=progress,
        )
    if as_json:
        print_json(evaluation_json(result))
    else:
        _show_evaluation(result)
    _require_all_readable(result.failures, result.count + len(result.failures))


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


@command()
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Images, folders, globs, or - for a list of paths on stdin."
        ),
    ],
    model: Model = None,
    top_k: Annotated[
        int, typer.Option("--top-k", "-k", metavar="N", min=1, help="Classes to show.")
    ] = 5,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Write to a .jsonl or .csv file instead."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last whole answer of FILE.")
    ] = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify images: one line for every input, in order.

    \b
    vtrain predict holiday.jpg
    vtrain predict photos/ 'more/*.png' -m runs/flowers-001 --csv > answers.csv
    vtrain predict cat.jpg -m resnet50 --top-k 3 --json
    find photos -name '*.jpg' | vtrain predict - -o answers.jsonl --resume
    """
    from vtrain.checkpoint import load_model
    from vtrain.predict import FoundInputs
    from vtrain.predict import predict as run_predict
    from vtrain.predict_file import choose_form, write_predictions
    from vtrain.runtime import find_device

    if as_json and as_csv:
        raise UsageError("--json and --csv were both given", "choose one of them")
    if resume and output is None:
        raise UsageError("--resume needs the --output FILE that it goes on with")
    form = None if output is None else choose_form(output, as_json=as_json, as_csv=as_csv)
    console = Console(quiet=quiet)
    inputs = FoundInputs(paths, sys.stdin.buffer, notify=console.say)
    loaded = load_model(model, device=find_device(device), precision=precision, notify=console.say)
    work: dict[str, Any] = {
        "top_k": top_k,
        "batch_size": batch_size,
        "workers": _workers(workers),
        "notify": console.warn,
    }
    if output is not None and form is not None:
        with console.counter("predicting") as progress:
            written = write_predictions(
                output,
                inputs,
                loaded,
                form=form,
                resume=resume,
                progress=lambda done: progress(done, inputs.known),
                **work,
            )
        print_line(f"{output}: {written.count:,} answers")
        _require_all_answered(written.failed, written.count)
        return
    answers = run_predict(inputs, loaded, **work)
    show = _prediction_printer(as_json, as_csv, min(top_k, len(loaded.classes)))
    _print_predictions(answers, inputs, show, console)


def _print_predictions(
    answers: Iterable[Any], inputs: Any, show: Callable[[Any], None], console: Console
) -> None:
    failed = 0
    with console.progress(0, "predicting", data=True) as bar:
        for answer in answers:
            show(answer)
            bar.total = inputs.known
            bar.update(1)
            failed += answer.error is not None
    _require_all_answered(failed, inputs.known)


def _require_all_answered(failed: int, count: int) -> None:
    if failed:
        raise DataError(f"{failed} of {count} inputs could not be used", "their lines say why")


def _prediction_printer(as_json: bool, as_csv: bool, top_k: int) -> Callable[[Any], None]:
    from vtrain.predict import (
        format_prediction,
        prediction_csv_header,
        prediction_csv_row,
        prediction_json,
    )

    if as_json:
        return lambda answer: print_json(prediction_json(answer), indent=False)
    if as_csv:
        print_csv_row(prediction_csv_header(top_k))
        return lambda answer: print_csv_row(prediction_csv_row(answer, top_k))
    return lambda answer: print_line(format_prediction(answer))


@command()
def embed(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images at any depth, or one image.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT.npy", help="The array to write; OUT.csv goes beside it.")
    ],
    model: Model = None,
    layer: Annotated[
        str,
        typer.Option(
            metavar="LAYER", help="penultimate, pooled, logits, or a stage of the backbone."
        ),
    ] = "penultimate",
    feature_maps: Annotated[
        bool, typer.Option("--feature-maps", help="Keep the spatial extent: [N, C, H, W].")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the same command was stopped or killed.")
    ] = False,
    as_json: Json = False,
    batch_size: BatchSize = 32,
    workers: Workers = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one feature vector for each image.

    OUT.npy is [N, D] float32; OUT.csv has row, path and status of each image. Under torchrun
    the processes share the work; OUT.npy must be where all of them see it.

    \b
    vtrain embed photos/ photos.npy
    vtrain embed photos/ photos.npy -m vit_b_16
    vtrain embed photos/ maps.npy -m resnet50 --layer layer3 --feature-maps
    torchrun --nproc-per-node=8 -m vtrain embed photos/ photos.npy --resume
    """
    from vtrain.checkpoint import load_model
    from vtrain.distributed import read_process_group
    from vtrain.embed import embed as run_embed
    from vtrain.runtime import find_device

    group = read_process_group()
    console = Console(quiet=quiet or not group.is_main)
    chosen = find_device(group.choose_device(device))
    with _told_once(group), group.joined(chosen):
        with group.together(main_first=True):  # the first may have to download weights
            loaded = load_model(model, device=chosen, precision=precision, notify=console.say)
        with console.counter("embedding") as progress:
            result = run_embed(
                folder,
                output,
                loaded,
                layer=layer,
                feature_maps=feature_maps,
                batch_size=batch_size,
                workers=_workers(workers),
                resume=resume,
                group=group,
                notify=console.say,
                progress=progress,
            )
    if group.is_main:
        _show_embed(result, as_json)


@contextmanager
def _told_once(group: Any) -> Iterator[None]:
    """Leave it to rank 0, and to the process that failed alone, to tell what went wrong."""
    from vtrain.distributed import PeerFailedError

    common = (PeerFailedError, StoppedError, InterruptedRunError, DivergedError)

    try:
        yield
    except common as error:
        if group.is_main:
            raise
        raise typer.Exit(int(error.exit_code)) from None


def _show_embed(result: Any, as_json: bool) -> None:
    from dataclasses import replace

    from vtrain.records import to_plain

    if as_json:
        plain = to_plain(replace(result, failures=tuple(result.failures)))
        print_json({"schema": 1, **plain})
    else:
        shape = "x".join(str(size) for size in (result.count, *result.dim))
        print_line(f"{result.output}: {shape} float32, paths in {result.index}")
    _require_all_readable(result.failures, result.count)


@command()
def backbones(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Show this one's stages.", autocompletion=complete_backbones
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", metavar="PX", min=16, help="Input size in pixels.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The zoo: size, cost, published accuracy, and when to use what.

    \b
    vtrain backbones
    vtrain backbones resnet50
    vtrain backbones vit_b_16 --image-size 384
    """
    if name is None:
        if image_size is not None:
            raise UsageError("--image-size needs the NAME of a backbone")
        _list_backbones(as_json, Console(quiet=quiet))
    else:
        _show_backbone(name, image_size, as_json)


def _list_backbones(as_json: bool, console: Console) -> None:
    from vtrain.records import to_plain
    from vtrain.zoo import backbone_names, find_backbone

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
        crop_last=True,
    )
    console.say("vtrain backbones NAME shows the weights, options and stages of one")


def _show_backbone(name: str, image_size: int | None, as_json: bool) -> None:
    from vtrain.zoo import find_backbone

    spec = find_backbone(name)  # a typo shall not wait for torch
    from vtrain.models.backbones import describe_facts, describe_stages
    from vtrain.records import to_plain

    stages = describe_stages(spec, image_size=image_size)
    facts = describe_facts(spec, image_size=image_size)
    if as_json:
        plain = {"stages": to_plain(stages), "facts": list(facts)}
        print_json({"schema": 1, **to_plain(spec), **plain})
        return
    for line in (*_backbone_lines(spec), *facts):
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


def _backbone_lines(spec: Any) -> list[str]:
    lines = [
        f"{spec.name}: {spec.note}",
        f"{spec.params / 1e6:.1f} M parameters, {spec.gflops:.2f} G multiply-adds at "
        f"{spec.image_size} px, with a head of 1,000 classes",
    ]
    if spec.weights:
        others = [each for each in spec.weights if each != spec.default_weights]
        more = f"; also {', '.join(others)}" if others else ""
        lines.append(
            f"weights: {spec.default_weights} (default, {spec.file_size_mb:.0f} MB, "
            f"ImageNet top-1 {spec.top1:.1f} %){more}"
        )
    if spec.options:
        lines.append(f"model.options: {', '.join(spec.options)}")
    return lines


@command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="One subfolder for each class.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="CONFIG", help="Where to write it."),
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(metavar="NAME", help="Backbone to train.", autocompletion=complete_backbones),
    ] = "resnet18",
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write a commented config for a folder of images.

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
    console.say(f"next: vtrain fit {_quote(path)}")
    print_line(str(path))


@command("config")
def show_config(
    config: Config,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The whole config, and where each value came from.

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
        print_text(dump_config(loaded.config, loaded.origins).rstrip("\n"))


@command()
def schema(quiet: Quiet = False, debug: Debug = False) -> None:
    """JSON Schema of the config, for editors.

    \b
    vtrain schema > vtrain.schema.json
    """
    from vtrain.config import json_schema

    print_json(json_schema())


@command()
def sample(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.")
    ],
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Another seed draws another set.")
    ] = 0,
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


@command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove what is stored.")] = False,
    unused_days: Annotated[
        float,
        typer.Option(
            "--unused-days", metavar="DAYS", min=0, help="With --clear: only what rested so long."
        ),
    ] = 0.0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show or clear stored features and scans.

    It is only ever a matter of time: what is removed is computed again when it is needed. The
    folder is ~/.cache/vtrain, or what the variable VTRAIN_CACHE names.

    \b
    vtrain cache
    vtrain cache --clear --unused-days 30
    """
    from vtrain.cache_folder import clear_cache, find_cache_folder, list_cache
    from vtrain.records import to_plain

    if unused_days and not clear:
        raise UsageError("--unused-days was given without --clear", "add --clear")
    root = find_cache_folder()
    entries = clear_cache(root, unused_days=unused_days) if clear else list_cache(root)
    if as_json:
        listed = [to_plain(entry) for entry in entries]
        print_json({"schema": 1, "folder": str(root), "removed": clear, "entries": listed})
        return
    _show_cache(entries)
    total = format_bytes(sum(entry.size for entry in entries))
    Console(quiet=quiet).say(f"{'removed' if clear else 'in'} {root}: {total}")


def _show_cache(entries: Sequence[Any]) -> None:
    if not entries:
        return
    print_table(
        ("kind", "backbone", "layer", "precision", "augment", "size", "last used", "folder"),
        [
            (
                entry.kind,
                *(str(entry.facts.get(name, "-")) for name in ("backbone", "layer", "precision")),
                str(entry.facts.get("view", {}).get("augment", "-")),
                format_bytes(entry.size),
                time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
                entry.folder.name,
            )
            for entry in entries
        ],
        right=(5,),
    )


@command()
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
        print_line(f"{name}: {'none' if value is None else value}")


def _workers(given: int | None) -> Any:
    return "auto" if given is None else given


def _quote(path: Path) -> str:
    from shlex import quote

    return one_line(quote(str(path)))


def _require_all_readable(failures: Sequence[Any], total: int) -> None:
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    open_missing_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if COMPLETE_VARIABLE in os.environ:
        app(arguments, prog_name="vtrain")  # answers the shell and exits
    try:
        return _run(arguments)
    except OutputClosedError:
        return int(ExitCode.OK)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and is_output_closed():
            return int(ExitCode.OK)  # Typer prints help by itself
        if "--debug" in arguments:
            Console().say(traceback.format_exc().rstrip())
        explained = explain_error(error, arguments)
        Console().error(explained)
        return int(explained.exit_code)


def _run(arguments: list[str]) -> int:
    # Typer's own main() would turn Ctrl-C, a closed pipe and EOFError into exit codes of its own.
    program = typer.main.get_command(app)
    try:
        with program.make_context("vtrain", arguments) as context:
            program.invoke(context)
    except typer.Exit as stop:  # after --help and --version, or where another process tells why
        return stop.exit_code
    return int(ExitCode.OK)
