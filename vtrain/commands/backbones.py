"""`vtrain backbones`: the zoo."""

from typing import Annotated

import typer

from vtrain.commands.options import Json, complete_backbones
from vtrain.errors import UsageError
from vtrain.system.terminal import Console, print_json, print_line, print_table


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
    *,
    console: Console,
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
        _list_backbones(as_json, console)
    else:
        _show_backbone(name, image_size, as_json)


def _list_backbones(as_json: bool, console: Console) -> None:
    from vtrain.models.zoo import backbone_names, find_backbone
    from vtrain.system.json_csv import to_plain

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
    from vtrain.models.zoo import find_backbone

    spec = find_backbone(name)  # a typo shall not wait for torch
    from vtrain.models.backbones import describe_facts, describe_stages
    from vtrain.system.json_csv import to_plain

    stages = describe_stages(spec, image_size=image_size)
    facts = describe_facts(spec, image_size=image_size)
    if as_json:
        plain = {"stages": to_plain(stages), "facts": list(facts)}
        print_json({"schema": 1, **to_plain(spec), **plain})
        return
    print_line(f"{spec.name}: {spec.note}")
    print_line(
        f"{spec.params / 1e6:.1f} M parameters, {spec.gflops:.2f} G multiply-adds at "
        f"{spec.image_size} px, with a head of 1,000 classes"
    )
    if spec.weights:
        others = ", ".join(each for each in spec.weights if each != spec.default_weights)
        print_line(
            f"weights: {spec.default_weights} (default, {spec.file_size_mb:.0f} MB, "
            f"ImageNet top-1 {spec.top1:.1f} %){f'; also {others}' if others else ''}"
        )
    if spec.options:
        print_line(f"model.options: {', '.join(spec.options)}")
    for line in facts:
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
