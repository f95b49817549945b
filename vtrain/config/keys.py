"""The config of a run: every key with its type, range, default and meaning, in one place.

The JSON Schema, `configs/reference.yaml` and the error messages are all generated from here.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

FREEZE_POLICIES = ("none", "head", "gradual", "lp-ft")
UNTIL = "until:"

HeadType = Literal["linear", "mlp"]


def _unwrap_descriptions(schema: dict[str, Any]) -> None:
    for key in schema["properties"].values():
        if "description" in key:
            key["description"] = " ".join(key["description"].split())


class ConfigPart(BaseModel):
    """Frozen, strict (no string is read as a number) and closed (no unknown key).

    The text below a key is its description.
    """

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_extra=_unwrap_descriptions,
    )


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _expand_head(value: Any) -> Any:
    """`head: mlp` is short for `head: {type: mlp}`."""
    return {"type": value} if isinstance(value, str) else value


def _check_policy(value: str) -> str:
    if value in FREEZE_POLICIES or re.fullmatch(UNTIL + r"\S+", value):
        return value
    raise PydanticCustomError("freeze_policy", "not a freeze policy")


def _freeze_kind(value: Any) -> str:
    return "rules" if isinstance(value, (list, tuple)) else "policy"


class HeadConfig(ConfigPart):
    """The new last layer, trained from random weights."""

    type: HeadType = "linear"
    """linear: one linear layer. mlp: linear, ReLU, linear; can fit classes that are not linearly
    separable in the features, and overfits sooner.
    """
    hidden: int = Field(default=512, ge=1, le=65_536)
    """Width of the hidden layer in units; used by mlp only."""
    norm: Literal["layer", "none"] = "layer"
    """layer: each image's features are brought to mean 0 and variance 1 first, so that one learning
    rate fits backbones whose features differ in scale. none: as they come.
    """
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the last layer's inputs set to zero in training, against overfitting; 0 for very
    large sets.
    """


class ModelConfig(ConfigPart):
    """What is trained."""

    backbone: str = Field(min_length=1, examples=["resnet50"])
    """Name of the network below the head; `vtrain backbones` lists them with size, speed and
    accuracy.
    """
    weights: str = Field(default="DEFAULT", min_length=1)
    """Weights that training starts from. DEFAULT: torchvision's best for this backbone. An enum
    name such as IMAGENET1K_V1: exactly those. none: random, for training from scratch. Or a path: a
    .pth or .safetensors file, a vtrain run folder or model file.
    """
    head: Annotated[
        HeadConfig, BeforeValidator(_expand_head, json_schema_input_type=HeadType | HeadConfig)
    ] = Field(default_factory=HeadConfig)
    """The new last layer: linear, mlp, or a mapping with the keys below."""
    batch_norm: Literal["train", "frozen", "sync"] = "train"
    """BatchNorm statistics in the part that is trained. train: updated from every batch. frozen:
    kept as in the pretrained weights, better for batches under about 16. sync: updated from the
    batches of all processes together (several GPUs). In frozen parts they never change, whatever is
    set here.
    """
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Builder options of the backbone, such as {width_mult: 0.5} for mobilenet_v2; `vtrain
    backbones NAME` lists them. They change shapes: most need weights: none.
    """


class FreezeRule(ConfigPart):
    """One line of a hand-written freeze policy; the first rule that matches a parameter wins."""

    pattern: str = Field(min_length=1, examples=["layer4"])
    """Name of a stage, head, or a glob over parameter names such as backbone.layer4.*.weight, where
    * also spans dots.
    """
    lr_scale: float | None = Field(gt=0, le=1000, examples=[1.0])
    """Factor on the learning rate (optim.lr for the head, optim.backbone_lr below it); null:
    frozen.
    """


_POLICY_SCHEMA = {
    "anyOf": [
        {"enum": list(FREEZE_POLICIES)},
        {"type": "string", "pattern": f"^{UNTIL}.+"},
    ]
}

Freeze = Annotated[
    Annotated[str, AfterValidator(_check_policy), WithJsonSchema(_POLICY_SCHEMA), Tag("policy")]
    | Annotated[
        tuple[FreezeRule, ...],
        BeforeValidator(_list_to_tuple, json_schema_input_type=list[FreezeRule]),
        Tag("rules"),
    ],
    Discriminator(_freeze_kind),
]


class ColumnsConfig(ConfigPart):
    """Which columns of a list hold what, by their names in its first line; null: found by name."""

    path: str | None = Field(default=None, min_length=1)
    """The column of image paths, or of file names whose suffix may be left out."""
    label: str | None = Field(default=None, min_length=1)
    """The column of classes."""
    split: str | None = Field(default=None, min_length=1)
    """The column that says train, val or test; data.val and data.val_fraction may then be left out.
    """
    group: str | None = Field(default=None, min_length=1)
    """The column that names what images belong together, as data.group does."""


class DataConfig(ConfigPart):
    """Images and how they reach the model."""

    train: str = Field(min_length=1, examples=["data/flowers/train"])
    """Training images: a folder with one subfolder per class (ImageFolder layout), plain .tar
    files, or a list of paths and classes (.csv, .tsv, .txt or .jsonl; see columns).
    """
    val: str | None = Field(default=None, min_length=1)
    """Validation images, as for train; classes matched to data.train by name. Exactly one of val,
    val_fraction and lines of val in a list (see columns) is needed.
    """
    val_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training images held out for validation, the same share of every class, chosen
    by seed. 0.2 is usual. Images of one group (see group) stay on one side.
    """
    test_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training images held out for the test, as val_fraction; not beside test."""
    test: str | None = Field(default=None, min_length=1)
    """Test images, as for train, evaluated once with the best model after training; never used to
    choose anything.
    """
    exclude: str | None = Field(default=None, min_length=1)
    """Text file with one path per line, absolute or relative to the folder of that file: these
    images are left out of every split. `vtrain check --write-list` writes one. A line that starts
    with # is a comment, one in double quotes a JSON string.
    """
    group: str | None = Field(default=None, min_length=1)
    """What images belong together (one animal, patient, video, day) and stay on one side of
    val_fraction and test_fraction. folder: those of one folder. duplicates: those that are the
    same, or nearly so. The name of a column of the list. Or a regular expression with one group in
    parentheses, searched in the path below data.train, such as (patient\\d+)_. null: each image by
    itself.
    """
    columns: ColumnsConfig = Field(default_factory=ColumnsConfig)
    """Columns of the lists that train, val and test name."""
    root: str | None = Field(default=None, min_length=1)
    """Folder that relative paths in lists are relative to; null: the folder of the list."""
    names: str | None = Field(default=None, min_length=1)
    """File of class names for people to read (n01440764: tench): lines of class and name, or a JSON
    or YAML mapping.
    """
    image_size: int | None = Field(default=None, ge=16, le=2048)
    """Width and height of the model's input in pixels; null: what the weights were evaluated at.
    Twice the size costs about four times the time.
    """
    augment: Literal["auto", "none", "light", "trivial", "rand", "auto-imagenet"] = "auto"
    """Random changes to training images. auto: chosen from the freeze policy, and said once. none:
    as in evaluation. light: random crop and left-right flip, which is wrong for text. trivial,
    rand, auto-imagenet: the same with TrivialAugmentWide, RandAugment or AutoAugment on top, for
    long runs.
    """
    mixup: float = Field(default=0.0, ge=0, le=10)
    """Alpha of MixUp's Beta distribution: blends pairs of images and their labels; 0: off, 0.2 is
    usual.
    """
    cutmix: float = Field(default=0.0, ge=0, le=10)
    """Alpha of CutMix's Beta distribution: pastes a rectangle of one image into another and mixes
    the labels; 0: off, 1.0 is usual. With mixup as well, each batch gets one of the two.
    """
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a random rectangle of a training image is erased; 0: off."""
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=65_536)] = 32
    """Images per optimiser step and process, before train.accumulate. Larger is faster until memory
    is full; scale the learning rates with it. auto: steps of 32 times train.accumulate images,
    computed in as few batches as the memory allows.
    """
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    """Processes that read images. auto: one for each core, at most eight. 0: none, read in the main
    process. The number never changes the result.
    """
    on_bad_image: Literal["error", "skip"] = "error"
    """error: an unreadable image stops the run before training starts, all of them named. skip:
    left out, counted and listed. Never replaced by another image.
    """
    balance: Literal["none", "sampler", "loss"] = "none"
    """For classes of unequal size. sampler: rare classes are drawn more often. loss: their errors
    weigh more. none: as they come.
    """


class OptimConfig(ConfigPart):
    """Optimiser and learning rates."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw: AdamW, works over a wide range of learning rates. sgd: SGD with Nesterov momentum,
    wants learning rates about 10 to 100 times larger.
    """
    lr: float = Field(default=5e-3, gt=0, le=10)
    """Peak learning rate of the head; lp-ft takes a fifth of it once everything is trained."""
    backbone_lr: float | None = Field(default=None, gt=0, le=10)
    """Peak learning rate of everything below the head that is not frozen. null: 3e-4; 5e-5 for
    transformers and ConvNeXt, which forget sooner; lr where weights are none. The stage table
    before training shows what was chosen.
    """
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on backbone_lr per stage, from the last stage down to the stem: 0.75 trains early
    stages more slowly. null: one learning rate for the whole backbone.
    """
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    """Weight decay per step times the learning rate; never on norms and biases."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd; adamw does not use it."""
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    """Course of the learning rates after the warm-up. cosine, linear: down to 0 at the end.
    constant: none. step: times step_gamma every step_epochs.
    """
    warmup_epochs: float = Field(default=1.0, ge=0, le=10_000)
    """Epochs over which the learning rates rise from 0 to their peak, at most half of each phase;
    fractions are allowed.
    """
    step_epochs: float = Field(default=10.0, gt=0, le=10_000)
    """Epochs between two drops of the step schedule; other schedules ignore it."""
    step_gamma: float = Field(default=0.1, gt=0, le=1)
    """Factor of each drop of the step schedule; other schedules ignore it."""


class TrainConfig(ConfigPart):
    """Length, precision and safety of the run."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    """Passes over the training images, all phases together."""
    probe_epochs: int | None = Field(default=None, ge=1, le=10_000)
    """freeze: lp-ft only: how many of the epochs train the head alone before everything is
    fine-tuned; null: chosen from epochs.
    """
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d{1,3}|mps)$")
    """auto: the first GPU if there is one, else the CPU. Or cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the forward pass. auto: the fastest that is safe on the device and backbone,
    said once. Weights and optimiser state are always fp32.
    """
    accumulate: int = Field(default=1, ge=1, le=1024)
    """Batches whose gradients are summed into one optimiser step: a larger effective batch in the
    same memory.
    """
    clip_norm: float | None = Field(default=1.0, gt=0, le=1_000_000)
    """Largest L2 norm of all gradients together, clipped before a step; null: off."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of each label spread evenly over all classes: better calibrated, less overconfident
    models; 0: off.
    """
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, such as 0.999; it is then
    what gets validated and saved. null: off.
    """
    early_stop: int | None = Field(default=None, ge=1, le=10_000)
    """Stop after this many epochs without a better validation result, counted in the last phase;
    null: never.
    """
    cache: Literal["auto", "off", "features"] = "auto"
    """Whether what a frozen part computes is stored and used again. auto: wherever the result is
    the same as without. features: the same, and an error where the config rules it out. off:
    everything is computed anew in every epoch.
    """
    cache_views: int | None = Field(default=None, ge=1, le=1000)
    """With augmentation and a frozen part: store so many random views of each training image and
    draw among them, instead of making a new one each epoch; 8 is usual. null: augmented images are
    not stored.
    """
    cache_limit: float = Field(default=20.0, gt=0, le=1_000_000)
    """Size in GB that all stored features may take together; those that were not used for the
    longest time are removed first. More than this for one run is not stored.
    """
    compile: bool = False
    """torch.compile the model: faster steps after a wait of about a minute."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """What a loss that is not finite does. stop: it ends the run; the last checkpoint is intact.
    rollback: the run goes back to that checkpoint and leaves the batch of that step out, up to ten
    times.
    """
    save_every_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Save a checkpoint every so many optimiser steps, besides every epoch; for epochs that take
    long. null: after epochs only.
    """
    tensorboard: bool = False
    """Also write TensorBoard event files into the run folder; needs the tensorboard extra."""
    report: bool = True
    """Write report.html and model-card.md into the run folder at the end, as `vtrain report` does.
    """


class FitConfig(ConfigPart):
    """Everything that `vtrain fit` needs to know.

    Paths are relative to the folder of the config, on the command line to the working directory.
    """

    run_dir: str | None = Field(default=None, min_length=1)
    """Folder that the run writes, never overwritten; relative to the working directory, wherever it
    is written. null: runs/<config name>-<number>.
    """
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of everything random: the head's first weights, the split, the order and the
    augmentation of images.
    """
    model: ModelConfig
    freeze: Freeze = "lp-ft"
    """Which parameters are trained. none: all. head: the head alone (linear probe). until:<stage>:
    everything above that stage; it and all before it are frozen. gradual: the head first, then one
    stage more at a time. lp-ft: first the head, then all. Or an ordered list of {pattern,
    lr_scale}: the first match wins.
    """
    data: DataConfig
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)


def flatten_config(config: FitConfig) -> dict[str, Any]:
    """Dotted key → plain value, in the model's order; `freeze` and `model.options` stay whole."""
    flat: dict[str, Any] = {}
    _flatten(config.model_dump(mode="json"), "", flat)
    return flat


def _flatten(values: Mapping[str, Any], prefix: str, flat: dict[str, Any]) -> None:
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and key != "model.options":
            _flatten(value, key + ".", flat)
        else:
            flat[key] = value
