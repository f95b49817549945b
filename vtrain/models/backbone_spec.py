"""What is known of a backbone: stages, weights, figures and builder options, as a record."""

from collections.abc import Mapping
from dataclasses import dataclass

OptionValue = int | float | bool | str

DEPTHWISE_FAMILIES = frozenset(
    {
        "convnext",
        "efficientnet",
        "efficientnet_v2",
        "maxvit",
        "mnasnet",
        "mobilenet_v2",
        "mobilenet_v3",
        "separable_cnn",
        "shufflenet_v2",
    }
)

# Fine-tuned with AdamW, these lose what they know at rates that suit other networks.
GENTLE_FAMILIES = frozenset({"convnext", "maxvit", "swin", "vit"})


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of consecutive layers that freezing, layer decay and `embed --layer` speak about.

    `prefixes` are the parameter and module names in the full model that belong to it, `output` is
    the module whose output is the stage's output. `is_map` is False for fully connected stages,
    whose output has no spatial extent.
    """

    name: str
    prefixes: tuple[str, ...]
    output: str
    is_map: bool = True


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """One line of the zoo.

    `head_path` names the last linear (or 1 × 1 convolution) layer, `feature_map` the module whose
    output is the last feature map. `image_size` and `resize` are the evaluation crop and shorter
    edge of the default weights in pixels; `params`, `gflops` (multiply-adds in billions at
    `image_size`), `top1` (percent) and `file_size_mb` are what is published for those weights,
    with the 1,000-class head. `image_size_multiple` is 1 where any size from `min_image_size` on
    will do.
    """

    name: str
    family: str
    head_path: str
    feature_map: str
    stages: tuple[Stage, ...]
    weights: tuple[str, ...]
    default_weights: str | None
    image_size: int
    resize: int
    min_image_size: int
    image_size_multiple: int
    params: int
    gflops: float
    top1: float | None
    file_size_mb: float | None
    options: tuple[str, ...]
    note: str
    own: bool = False

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages from the input to the last block; the head is none of them."""
        return tuple(stage.name for stage in self.stages)

    @property
    def depthwise(self) -> bool:
        """Whether most of the work is in depthwise convolutions, which bf16 slows on a CPU."""
        return self.family in DEPTHWISE_FAMILIES

    @property
    def is_gentle(self) -> bool:
        """Whether fine-tuning loses what it knows at learning rates that suit other networks."""
        return self.family in GENTLE_FAMILIES


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Figures of one stage for one image.

    `shape` is the output without the batch: (C, H, W), or (D,) after fully connected layers.
    """

    name: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class BuilderOption:
    """A scalar that `model.options` may set; numbers lie between `minimum` and `maximum`."""

    kind: type[int] | type[float] | type[bool]
    minimum: float
    maximum: float
    text: str


BUILDER_OPTIONS: Mapping[str, BuilderOption] = {
    "attention_dropout": BuilderOption(float, 0.0, 0.9, "dropout on the attention weights"),
    "drop_rate": BuilderOption(float, 0.0, 0.9, "dropout after each dense layer"),
    "dropout": BuilderOption(float, 0.0, 0.9, "dropout below the last layer"),
    "groups": BuilderOption(int, 1, 64, "groups of the 3 × 3 convolutions"),
    "layer_scale": BuilderOption(float, 0.0, 1.0, "initial scale of each residual branch"),
    "memory_efficient": BuilderOption(bool, 0, 1, "recompute activations to save memory"),
    "mlp_dropout": BuilderOption(float, 0.0, 0.9, "dropout in the MLP layers"),
    "reduced_tail": BuilderOption(bool, 0, 1, "half the channels in the last blocks"),
    "stochastic_depth_prob": BuilderOption(
        float, 0.0, 0.9, "probability to skip the last residual branch; earlier ones in proportion"
    ),
    "width_mult": BuilderOption(float, 0.1, 4.0, "multiplies the channels of every layer"),
    "width_per_group": BuilderOption(int, 4, 512, "channels a group in the first stage"),
    "zero_init_residual": BuilderOption(
        bool, 0, 1, "residual branches start at zero, as an identity"
    ),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What the models of one architecture have in common."""

    family: str
    head_path: str
    feature_map: str
    stages: tuple[Stage, ...]
    options: tuple[str, ...] = ()
    min_image_size: int = 1
    image_size_multiple: int = 1
