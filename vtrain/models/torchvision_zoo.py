"""The table of backbones: a row for each, with its stages, weights and figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from vtrain.models.backbone_spec import BackboneSpec, Layout, Stage

_PYRAMID = {"stem": (0, 0), "stage1": (1, 1), "stage2": (2, 3), "stage3": (4, 5)}

_NONE: tuple[str, ...] = ()
_V1 = ("IMAGENET1K_V1",)
_V2 = ("IMAGENET1K_V1", "IMAGENET1K_V2")
_SWAG = ("IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1")
_V1_SWAG = _V1 + _SWAG
_V2_SWAG = _V2 + _SWAG

# name, layout, weights, crop px, shorter edge px, parameters, GFLOPs, top-1 %, file MB
_Row = tuple[str, Layout, tuple[str, ...], int, int, int, float, float | None, float | None]

_NOTES: Mapping[str, str] = {
    "resnet18": "the plain, fast default to start from; its features transfer well",
    "resnet34": "deeper resnet18; resnet50 costs little more and transfers better",
    "resnet50": "the reference; V2 weights classify better, V1 weights often probe better",
    "resnet101": "deeper resnet50; worth it with much data",
    "resnet152": "the deepest ResNet; convnext_tiny is lighter and as accurate",
    "resnext50_32x4d": "resnet50 with 32 groups: a bit more accurate at the same cost",
    "resnext101_64x4d": "64 groups; a little better than 32x8d for less work",
    "resnext101_32x8d": "grouped convolutions; wide and accurate, heavy",
    "wide_resnet50_2": "resnet50 with doubled inner width; used in anomaly detection",
    "wide_resnet101_2": "resnet101 with doubled inner width; heavy",
    "regnet_y_400mf": "4 M parameters, squeeze-and-excitation; strong for its size",
    "regnet_y_800mf": "the best RegNet under 1 GFLOP",
    "regnet_y_1_6gf": "squeeze-and-excitation RegNet; resnet50's accuracy at 40 % of its work",
    "regnet_y_3_2gf": "resnet101's accuracy at 40 % of its work; a good default for a GPU",
    "regnet_y_8gf": "a strong convolutional net for servers; easy to fine-tune",
    "regnet_y_16gf": "its SWAG weights, from weakly labelled photos, give excellent features",
    "regnet_y_32gf": "large; the SWAG weights are among the best frozen features here",
    "regnet_y_128gf": "645 M parameters, SWAG weights only; for linear probes on a large GPU",
    "regnet_x_400mf": "small and regular; fast on GPUs where depthwise nets are slow",
    "regnet_x_800mf": "resnet34's accuracy and more at a quarter of its work",
    "regnet_x_1_6gf": "resnet50's accuracy class at 40 % of its work",
    "regnet_x_3_2gf": "a good server model: fast, regular, no squeeze-and-excitation",
    "regnet_x_8gf": "between resnet50 and resnet152 in work, as accurate as resnet101",
    "regnet_x_16gf": "grouped bottlenecks, regular and GPU-friendly; 54 M parameters",
    "regnet_x_32gf": "the largest RegNetX; regnet_y_16gf reaches the same for half the work",
    "convnext_tiny": "modern convolutional net; strong transfer at about resnet50's cost",
    "convnext_small": "twice convnext_tiny's depth; a good step up when a GPU is at hand",
    "convnext_base": "large convolutional net; fine-tune with AdamW and a low backbone_lr",
    "convnext_large": "the most accurate plain convolutional net at 224 px; GPU only",
    "efficientnet_b0": "more accurate than resnet50's V1 weights at a tenth of its work",
    "efficientnet_b1": "b0 scaled up, newer training recipe; 240 px input",
    "efficientnet_b2": "b0 scaled to 288 px; a good size for phones of today",
    "efficientnet_b3": "b0 scaled to 300 px; the usual compromise of the family",
    "efficientnet_b4": "b0 scaled to 380 px; for fine detail; memory grows fast from here on",
    "efficientnet_b5": "456 px input; efficientnet_v2_s is better and cheaper",
    "efficientnet_b6": "528 px input; efficientnet_v2_m is better and cheaper to train",
    "efficientnet_b7": "600 px input; very slow; prefer efficientnet_v2_m",
    "efficientnet_v2_s": "fused convolutions train fast on GPUs; most accurate near 20 M weights",
    "efficientnet_v2_m": "480 px input; for fine-grained classes with a GPU",
    "efficientnet_v2_l": "the most accurate here that saw ImageNet-1k alone; 480 px, GPU only",
    "mobilenet_v3_small": "smallest sensible choice for CPUs and phones",
    "mobilenet_v2": "inverted residuals; quantises well, supported by every phone runtime",
    "mobilenet_v3_large": "best accuracy per operation on CPUs and phones; the default for devices",
    "mnasnet0_5": "found by architecture search for phones; 2 M parameters",
    "mnasnet0_75": "mnasnet between 0.5 and 1.0; mobilenet_v3_large is more accurate at this cost",
    "mnasnet1_0": "architecture search for phones; mobilenet_v2's accuracy class",
    "mnasnet1_3": "the widest mnasnet; efficientnet_b0 is lighter and better",
    "shufflenet_v2_x0_5": "the cheapest of all at 0.04 GFLOPs; for microcontroller-class budgets",
    "shufflenet_v2_x1_0": "built for real speed on ARM CPUs rather than for few FLOPs",
    "shufflenet_v2_x1_5": "mobilenet_v2's accuracy at its cost, with less memory traffic",
    "shufflenet_v2_x2_0": "the widest ShuffleNet; fast on CPUs at 76 % top-1",
    "squeezenet1_1": "squeezenet1_0 at 40 % of its work and the same accuracy; prefer it",
    "squeezenet1_0": "AlexNet's accuracy with 50 times fewer parameters in a 5 MB file",
    "vit_b_16": "the standard vision transformer; its SWAG weights are among the best to probe",
    "vit_b_32": "coarse 32 px patches: four times faster than vit_b_16, weaker on small objects",
    "vit_l_16": "large transformer; worth it with the SWAG weights",
    "vit_l_32": "large with coarse patches; vit_b_16 is smaller and better",
    "vit_h_14": "giant transformer at 518 px, SWAG weights only; best frozen features, GPU only",
    "swin_t": "shifted-window attention at resnet50's cost; fine-tune with AdamW and warm-up",
    "swin_v2_t": "Swin with scaled cosine attention: steadier at other image sizes; 256 px",
    "swin_s": "hierarchical attention; deeper swin_t",
    "swin_v2_s": "deeper swin_v2_t; 256 px",
    "swin_b": "hierarchical attention in shifted windows; large",
    "swin_v2_b": "the most accurate Swin here; 256 px",
    "maxvit_t": "convolution and two kinds of attention; input must be a multiple of 224 px",
    "densenet121": "few parameters, reuses features; popular in medical imaging; hungry for memory",
    "densenet169": "deeper densenet121; small gain for a fifth more work",
    "densenet201": "the deepest DenseNet; resnet50 is faster and more accurate",
    "densenet161": "the wide DenseNet, the most accurate of the four; slow for its parameter count",
    "inception_v3": "299 px input; often asked for as the network behind FID and older papers",
    "googlenet": "first Inception (2014); light, of historic interest; no auxiliary heads",
    "vgg11": "plain 3 × 3 stack; 90 % of the weights in fully connected layers",
    "vgg11_bn": "vgg11 with batch norm: trains more easily; prefer it",
    "vgg13": "two convolutions per block; big file, mostly fully connected",
    "vgg13_bn": "vgg13 with batch norm",
    "vgg16": "the classic for perceptual features and style; heavy for its accuracy",
    "vgg16_bn": "vgg16 with batch norm: trains more easily; prefer it for fine-tuning",
    "vgg19": "deepest plain stack; common in style transfer",
    "vgg19_bn": "vgg19 with batch norm; the most accurate VGG, ten times resnet18's work",
    "alexnet": "historic baseline (2012); nearly all weights sit in two fully connected layers",
    "simple_cnn": "tiny plain network to train from scratch: first runs, small images, tests",
    "separable_cnn": "depthwise-separable simple_cnn: fewer parameters, for very small devices",
    "preact_resnet18": "pre-activation ResNet to train from scratch on small images (32 to 96 px)",
    "preact_resnet50": "deep pre-activation ResNet from scratch; wants tens of thousands of images",
}


def _features(prefix: str, groups: Mapping[str, tuple[int, int]]) -> tuple[Stage, ...]:
    """Stages of a sequence: name → first and last index below `prefix`, output of the last."""
    return tuple(
        Stage(name, tuple(f"{prefix}.{i}" for i in range(first, last + 1)), f"{prefix}.{last}")
        for name, (first, last) in groups.items()
    )


def _same_named(names: Iterable[str], prefix: str = "") -> tuple[Stage, ...]:
    """Stages that are modules of the same name."""
    return tuple(Stage(name, (prefix + name,), prefix + name) for name in names)


def _fully_connected(indices: Mapping[str, int]) -> tuple[Stage, ...]:
    """Linear layers in `classifier`, each with the activation behind it as its output."""
    return tuple(
        Stage(name, (f"classifier.{i}",), f"classifier.{i + 1}", is_map=False)
        for name, i in indices.items()
    )


def _resnet(family: str, options: tuple[str, ...]) -> Layout:
    stem = Stage("stem", ("conv1", "bn1"), "maxpool")
    layers = _same_named(("layer1", "layer2", "layer3", "layer4"))
    return Layout(family, "fc", "layer4", (stem, *layers), options)


def _vgg(convolutions: tuple[int, ...], *, batch_norm: bool) -> Layout:
    """Five blocks of 3 × 3 convolutions, each closed by its max pooling."""
    blocks: dict[str, tuple[int, int]] = {}
    first = 0
    for number, count in enumerate(convolutions, start=1):
        last = first + count * (3 if batch_norm else 2)
        blocks[f"block{number}"] = (first, last)
        first = last + 1
    stages = _features("features", blocks) + _fully_connected({"fc6": 0, "fc7": 3})
    return Layout("vgg", "classifier.6", "features", stages, ("dropout",), min_image_size=32)


def _vit(blocks: int, patch_size: int) -> Layout:
    embedding = ("conv_proj", "class_token", "encoder.pos_embedding")
    names = [f"encoder.layers.encoder_layer_{i}" for i in range(blocks)]
    stages = [Stage(f"block{i}", (name,), name) for i, name in enumerate(names, start=1)]
    stages[-1] = Stage(f"block{blocks}", (names[-1], "encoder.ln"), "encoder.ln")
    return Layout(
        "vit",
        "heads.head",
        "encoder",
        (Stage("stem", embedding, "encoder.dropout"), *stages),
        ("attention_dropout", "dropout"),
        min_image_size=patch_size,
        image_size_multiple=patch_size,
    )


def _squeezenet(fires: Sequence[int], min_image_size: int) -> Layout:
    groups = {f"fire{number}": (index, index) for number, index in enumerate(fires, start=2)}
    stages = _features("features", {"stem": (0, 2)} | groups)
    return Layout("squeezenet", "classifier.1", "features", stages, min_image_size=min_image_size)


def _numbered(prefix: str, lasts: Sequence[int]) -> tuple[Stage, ...]:
    """A stem, stages with numbers and a last convolution, by the last index of each."""
    names = ["stem", *(f"stage{number}" for number in range(1, len(lasts) - 1)), "last_conv"]
    firsts = [0, *(last + 1 for last in lasts[:-1])]
    return _features(prefix, dict(zip(names, zip(firsts, lasts, strict=True), strict=True)))


def _mobile(family: str, lasts: Sequence[int], option: str) -> Layout:
    """A `features` sequence closed by one linear layer behind dropout."""
    return Layout(family, "classifier.1", "features", _numbered("features", lasts), (option,))


def _mobilenet_v3(*lasts: int) -> Layout:
    stages = _numbered("features", lasts) + _fully_connected({"pre_logits": 0})
    options = ("reduced_tail", "width_mult")
    return Layout("mobilenet_v3", "classifier.3", "features", stages, options)


def _mnasnet(*options: str) -> Layout:
    stages = _numbered("layers", (*range(7, 14), 16))
    return Layout("mnasnet", "classifier.1", "layers", stages, options)


def _convnext() -> Layout:
    # the norm lies behind the pooling, so the stage's output comes before it
    last = Stage("stage4", ("features.6", "features.7", "classifier.0"), "features.7")
    stages = (*_features("features", _PYRAMID), last)
    options = ("layer_scale", "stochastic_depth_prob")
    return Layout("convnext", "classifier.2", "features", stages, options, min_image_size=32)


def _swin() -> Layout:
    last = Stage("stage4", ("features.6", "features.7", "norm"), "norm")
    stages = (*_features("features", _PYRAMID), last)
    options = ("attention_dropout", "dropout", "stochastic_depth_prob")
    return Layout("swin", "head", "norm", stages, options, min_image_size=4)


def _maxvit() -> Layout:
    blocks = [Stage(f"block{i}", (f"blocks.{i - 1}",), f"blocks.{i - 1}") for i in range(1, 5)]
    pre_logits = Stage("pre_logits", ("classifier.2", "classifier.3"), "classifier.4", False)
    return Layout(
        "maxvit",
        "classifier.5",
        "blocks.3",
        (*_same_named(("stem",)), *blocks, pre_logits),
        ("attention_dropout", "mlp_dropout", "stochastic_depth_prob"),
        min_image_size=224,
        image_size_multiple=224,
    )


def _densenet() -> Layout:
    members = {
        "stem": ("conv0", "norm0", "pool0"),
        "denseblock1": ("denseblock1",),
        "denseblock2": ("transition1", "denseblock2"),
        "denseblock3": ("transition2", "denseblock3"),
        "denseblock4": ("transition3", "denseblock4", "norm5"),
    }
    stages = tuple(
        Stage(name, tuple(f"features.{part}" for part in parts), f"features.{parts[-1]}")
        for name, parts in members.items()
    )
    options = ("drop_rate", "memory_efficient")
    return Layout("densenet", "classifier", "features", stages, options, min_image_size=29)


def _shufflenet() -> Layout:
    stages = _same_named(("stage2", "stage3", "stage4", "conv5"))
    stem = Stage("stem", ("conv1",), "maxpool")
    return Layout("shufflenet_v2", "fc", "conv5", (stem, *stages))


def _regnet(family: str) -> Layout:
    blocks = _same_named(("block1", "block2", "block3", "block4"), prefix="trunk_output.")
    return Layout(family, "fc", "trunk_output", (*_same_named(("stem",)), *blocks))


def _googlenet() -> Layout:
    stem = Stage("stem", ("conv1", "conv2", "conv3"), "maxpool2")
    names = [f"inception{part}" for part in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
    stages = (stem, *_same_named(names))
    return Layout("inception", "fc", "inception5b", stages, min_image_size=15)


def _inception_v3() -> Layout:
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    parts = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    mixed = [Stage(f"mixed_{part}", (f"Mixed_{part}",), f"Mixed_{part}") for part in parts]
    stages = (Stage("stem", stem, "maxpool2"), *mixed)
    return Layout("inception", "fc", "Mixed_7c", stages, min_image_size=75)


def _alexnet() -> Layout:
    convolutions = {"conv1": (0, 2), "conv2": (3, 5), "conv3": (6, 7), "conv4": (8, 9)}
    stages = _features("features", convolutions | {"conv5": (10, 12)})
    stages += _fully_connected({"fc6": 1, "fc7": 4})
    return Layout("alexnet", "classifier.6", "features", stages, ("dropout",), min_image_size=63)


def _own(family: str, blocks: Iterable[str], *options: str, norm: bool = False) -> Layout:
    """Networks of this package: a stem, blocks of the names given, a pooling and a linear layer."""
    stages = _same_named(("stem", *blocks))
    if norm:
        last = stages[-1]
        stages = (*stages[:-1], Stage(last.name, (last.name, "norm"), "norm"))
    return Layout(family, "fc", stages[-1].output, stages, options, min_image_size=16)


_RESNET_BASIC = _resnet("resnet", ("zero_init_residual",))
_RESNET = _resnet("resnet", ("groups", "width_per_group", "zero_init_residual"))
_RESNEXT = _resnet("resnext", ("zero_init_residual",))
_WIDE_RESNET = _resnet("wide_resnet", ("zero_init_residual",))
_REGNET_X = _regnet("regnet_x")
_REGNET_Y = _regnet("regnet_y")
_CONVNEXT = _convnext()
_EFFICIENTNET = _mobile("efficientnet", range(9), "stochastic_depth_prob")
_EFFICIENTNET_V2_S = _mobile("efficientnet_v2", range(8), "stochastic_depth_prob")
_EFFICIENTNET_V2 = _mobile("efficientnet_v2", range(9), "stochastic_depth_prob")
_MOBILENET_V2 = _mobile("mobilenet_v2", (0, 1, 3, 6, 10, 13, 16, 17, 18), "width_mult")
_MOBILENET_V3_SMALL = _mobilenet_v3(0, 1, 3, 6, 8, 11, 12)
_MOBILENET_V3_LARGE = _mobilenet_v3(0, 1, 3, 6, 10, 12, 15, 16)
_MNASNET = _mnasnet()
_MNASNET_1_0 = _mnasnet("width_mult")
_SHUFFLENET = _shufflenet()
_SQUEEZENET_1_0 = _squeezenet((3, 4, 5, 7, 8, 9, 10, 12), 21)
_SQUEEZENET_1_1 = _squeezenet((3, 4, 6, 7, 9, 10, 11, 12), 17)
_VIT_B_16 = _vit(12, 16)
_VIT_B_32 = _vit(12, 32)
_VIT_L_16 = _vit(24, 16)
_VIT_L_32 = _vit(24, 32)
_VIT_H_14 = _vit(32, 14)
_SWIN = _swin()
_MAXVIT = _maxvit()
_DENSENET = _densenet()
_INCEPTION_V3 = _inception_v3()
_GOOGLENET = _googlenet()
_VGG11 = _vgg((1, 1, 2, 2, 2), batch_norm=False)
_VGG11_BN = _vgg((1, 1, 2, 2, 2), batch_norm=True)
_VGG13 = _vgg((2, 2, 2, 2, 2), batch_norm=False)
_VGG13_BN = _vgg((2, 2, 2, 2, 2), batch_norm=True)
_VGG16 = _vgg((2, 2, 3, 3, 3), batch_norm=False)
_VGG16_BN = _vgg((2, 2, 3, 3, 3), batch_norm=True)
_VGG19 = _vgg((2, 2, 4, 4, 4), batch_norm=False)
_VGG19_BN = _vgg((2, 2, 4, 4, 4), batch_norm=True)
_ALEXNET = _alexnet()
_SIMPLE_CNN = _own("simple_cnn", ("block1", "block2", "block3"), "width_mult")
_SEPARABLE_CNN = _own("separable_cnn", ("block1", "block2", "block3"), "width_mult")
_PREACT_RESNET = _own("preact_resnet", ("layer1", "layer2", "layer3", "layer4"), norm=True)

ROWS: tuple[_Row, ...] = (
    ("resnet18", _RESNET_BASIC, _V1, 224, 256, 11_689_512, 1.814, 69.758, 44.661),
    ("resnet34", _RESNET_BASIC, _V1, 224, 256, 21_797_672, 3.664, 73.314, 83.275),
    ("resnet50", _RESNET, _V2, 224, 232, 25_557_032, 4.089, 80.858, 97.79),
    ("resnet101", _RESNET, _V2, 224, 232, 44_549_160, 7.801, 81.886, 170.53),
    ("resnet152", _RESNET, _V2, 224, 232, 60_192_808, 11.514, 82.284, 230.474),
    ("resnext50_32x4d", _RESNEXT, _V2, 224, 232, 25_028_904, 4.23, 81.198, 95.833),
    ("resnext101_64x4d", _RESNEXT, _V1, 224, 232, 83_455_272, 15.46, 83.246, 319.318),
    ("resnext101_32x8d", _RESNEXT, _V2, 224, 232, 88_791_336, 16.414, 82.834, 339.673),
    ("wide_resnet50_2", _WIDE_RESNET, _V2, 224, 232, 68_883_240, 11.398, 81.602, 263.124),
    ("wide_resnet101_2", _WIDE_RESNET, _V2, 224, 232, 126_886_696, 22.753, 82.51, 484.747),
    ("regnet_y_400mf", _REGNET_Y, _V2, 224, 232, 4_344_144, 0.402, 75.804, 16.806),
    ("regnet_y_800mf", _REGNET_Y, _V2, 224, 232, 6_432_512, 0.834, 78.828, 24.774),
    ("regnet_y_1_6gf", _REGNET_Y, _V2, 224, 232, 11_202_430, 1.612, 80.876, 43.152),
    ("regnet_y_3_2gf", _REGNET_Y, _V2, 224, 232, 19_436_338, 3.176, 81.982, 74.567),
    ("regnet_y_8gf", _REGNET_Y, _V2, 224, 232, 39_381_472, 8.473, 82.828, 150.701),
    ("regnet_y_16gf", _REGNET_Y, _V2_SWAG, 224, 232, 83_590_140, 15.912, 82.886, 319.49),
    ("regnet_y_32gf", _REGNET_Y, _V2_SWAG, 224, 232, 145_046_770, 32.28, 83.368, 554.076),
    ("regnet_y_128gf", _REGNET_Y, _SWAG, 384, 384, 644_812_894, 374.57, 88.228, 2461.564),
    ("regnet_x_400mf", _REGNET_X, _V2, 224, 232, 5_495_976, 0.414, 74.864, 21.257),
    ("regnet_x_800mf", _REGNET_X, _V2, 224, 232, 7_259_656, 0.8, 77.522, 27.945),
    ("regnet_x_1_6gf", _REGNET_X, _V2, 224, 232, 9_190_136, 1.603, 79.668, 35.339),
    ("regnet_x_3_2gf", _REGNET_X, _V2, 224, 232, 15_296_552, 3.177, 81.196, 58.756),
    ("regnet_x_8gf", _REGNET_X, _V2, 224, 232, 39_572_648, 7.995, 81.682, 151.456),
    ("regnet_x_16gf", _REGNET_X, _V2, 224, 232, 54_278_536, 15.941, 82.716, 207.627),
    ("regnet_x_32gf", _REGNET_X, _V2, 224, 232, 107_811_560, 31.736, 83.014, 412.039),
    ("convnext_tiny", _CONVNEXT, _V1, 224, 236, 28_589_128, 4.456, 82.52, 109.119),
    ("convnext_small", _CONVNEXT, _V1, 224, 230, 50_223_688, 8.684, 83.616, 191.703),
    ("convnext_base", _CONVNEXT, _V1, 224, 232, 88_591_464, 15.355, 84.062, 338.064),
    ("convnext_large", _CONVNEXT, _V1, 224, 232, 197_767_336, 34.361, 84.414, 754.537),
    ("efficientnet_b0", _EFFICIENTNET, _V1, 224, 256, 5_288_548, 0.386, 77.692, 20.451),
    ("efficientnet_b1", _EFFICIENTNET, _V2, 240, 255, 7_794_184, 0.687, 79.838, 30.136),
    ("efficientnet_b2", _EFFICIENTNET, _V1, 288, 288, 9_109_994, 1.088, 80.608, 35.174),
    ("efficientnet_b3", _EFFICIENTNET, _V1, 300, 320, 12_233_232, 1.827, 82.008, 47.184),
    ("efficientnet_b4", _EFFICIENTNET, _V1, 380, 384, 19_341_616, 4.394, 83.384, 74.489),
    ("efficientnet_b5", _EFFICIENTNET, _V1, 456, 456, 30_389_784, 10.266, 83.444, 116.864),
    ("efficientnet_b6", _EFFICIENTNET, _V1, 528, 528, 43_040_704, 19.068, 84.008, 165.362),
    ("efficientnet_b7", _EFFICIENTNET, _V1, 600, 600, 66_347_960, 37.746, 84.122, 254.675),
    ("efficientnet_v2_s", _EFFICIENTNET_V2_S, _V1, 384, 384, 21_458_488, 8.366, 84.228, 82.704),
    ("efficientnet_v2_m", _EFFICIENTNET_V2, _V1, 480, 480, 54_139_356, 24.582, 85.112, 208.01),
    ("efficientnet_v2_l", _EFFICIENTNET_V2, _V1, 480, 480, 118_515_272, 56.08, 85.808, 454.573),
    ("mobilenet_v3_small", _MOBILENET_V3_SMALL, _V1, 224, 256, 2_542_856, 0.057, 67.668, 9.829),
    ("mobilenet_v2", _MOBILENET_V2, _V2, 224, 232, 3_504_872, 0.301, 72.154, 13.598),
    ("mobilenet_v3_large", _MOBILENET_V3_LARGE, _V2, 224, 232, 5_483_032, 0.217, 75.274, 21.107),
    ("mnasnet0_5", _MNASNET, _V1, 224, 256, 2_218_512, 0.104, 67.734, 8.591),
    ("mnasnet0_75", _MNASNET, _V1, 224, 232, 3_170_208, 0.215, 71.18, 12.303),
    ("mnasnet1_0", _MNASNET_1_0, _V1, 224, 256, 4_383_312, 0.314, 73.456, 16.915),
    ("mnasnet1_3", _MNASNET, _V1, 224, 232, 6_282_256, 0.526, 76.506, 24.246),
    ("shufflenet_v2_x0_5", _SHUFFLENET, _V1, 224, 256, 1_366_792, 0.04, 60.552, 5.282),
    ("shufflenet_v2_x1_0", _SHUFFLENET, _V1, 224, 256, 2_278_604, 0.145, 69.362, 8.791),
    ("shufflenet_v2_x1_5", _SHUFFLENET, _V1, 224, 232, 3_503_624, 0.296, 72.996, 13.557),
    ("shufflenet_v2_x2_0", _SHUFFLENET, _V1, 224, 232, 7_393_996, 0.583, 76.23, 28.433),
    ("squeezenet1_1", _SQUEEZENET_1_1, _V1, 224, 256, 1_235_496, 0.349, 58.178, 4.729),
    ("squeezenet1_0", _SQUEEZENET_1_0, _V1, 224, 256, 1_248_424, 0.819, 58.092, 4.778),
    ("vit_b_16", _VIT_B_16, _V1_SWAG, 224, 256, 86_567_656, 17.564, 81.072, 330.285),
    ("vit_b_32", _VIT_B_32, _V1, 224, 256, 88_224_232, 4.409, 75.912, 336.604),
    ("vit_l_16", _VIT_L_16, _V1_SWAG, 224, 242, 304_326_632, 61.555, 79.662, 1161.023),
    ("vit_l_32", _VIT_L_32, _V1, 224, 256, 306_535_400, 15.378, 76.972, 1169.449),
    ("vit_h_14", _VIT_H_14, _SWAG, 518, 518, 633_470_440, 1016.717, 88.552, 2416.643),
    ("swin_t", _SWIN, _V1, 224, 232, 28_288_354, 4.491, 81.474, 108.19),
    ("swin_v2_t", _SWIN, _V1, 256, 260, 28_351_570, 5.94, 82.072, 108.626),
    ("swin_s", _SWIN, _V1, 224, 246, 49_606_258, 8.741, 83.196, 189.786),
    ("swin_v2_s", _SWIN, _V1, 256, 260, 49_737_442, 11.546, 83.712, 190.675),
    ("swin_b", _SWIN, _V1, 224, 238, 87_768_224, 15.431, 83.582, 335.364),
    ("swin_v2_b", _SWIN, _V1, 256, 272, 87_930_848, 20.325, 84.112, 336.372),
    ("maxvit_t", _MAXVIT, _V1, 224, 224, 30_919_624, 5.558, 83.7, 118.769),
    ("densenet121", _DENSENET, _V1, 224, 256, 7_978_856, 2.834, 74.434, 30.845),
    ("densenet169", _DENSENET, _V1, 224, 256, 14_149_480, 3.36, 75.6, 54.708),
    ("densenet201", _DENSENET, _V1, 224, 256, 20_013_928, 4.291, 76.896, 77.373),
    ("densenet161", _DENSENET, _V1, 224, 256, 28_681_000, 7.728, 77.138, 110.369),
    ("inception_v3", _INCEPTION_V3, _V1, 299, 342, 27_161_264, 5.713, 77.294, 103.903),
    ("googlenet", _GOOGLENET, _V1, 224, 256, 6_624_904, 1.498, 69.778, 49.731),
    ("vgg11", _VGG11, _V1, 224, 256, 132_863_336, 7.609, 69.02, 506.84),
    ("vgg11_bn", _VGG11_BN, _V1, 224, 256, 132_868_840, 7.609, 70.37, 506.881),
    ("vgg13", _VGG13, _V1, 224, 256, 133_047_848, 11.308, 69.928, 507.545),
    ("vgg13_bn", _VGG13_BN, _V1, 224, 256, 133_053_736, 11.308, 71.586, 507.59),
    # Without IMAGENET1K_FEATURES, whose fully connected layers are missing.
    ("vgg16", _VGG16, _V1, 224, 256, 138_357_544, 15.47, 71.592, 527.796),
    ("vgg16_bn", _VGG16_BN, _V1, 224, 256, 138_365_992, 15.47, 73.36, 527.866),
    ("vgg19", _VGG19, _V1, 224, 256, 143_667_240, 19.632, 72.376, 548.051),
    ("vgg19_bn", _VGG19_BN, _V1, 224, 256, 143_678_248, 19.632, 74.218, 548.143),
    ("alexnet", _ALEXNET, _V1, 224, 256, 61_100_840, 0.714, 56.522, 233.087),
    ("simple_cnn", _SIMPLE_CNN, _NONE, 64, 64, 376_928, 0.027, None, None),
    ("separable_cnn", _SEPARABLE_CNN, _NONE, 64, 64, 322_344, 0.009, None, None),
    ("preact_resnet18", _PREACT_RESNET, _NONE, 64, 64, 11_680_040, 0.556, None, None),
    ("preact_resnet50", _PREACT_RESNET, _NONE, 64, 64, 25_541_672, 1.300, None, None),
)


def build_spec(row: _Row) -> BackboneSpec:
    """The record of a row of the table."""
    name, layout, weights, image_size, resize, params, gflops, top1, file_size_mb = row
    of_layout: dict[str, Any] = {each.name: getattr(layout, each.name) for each in fields(layout)}
    return BackboneSpec(
        **of_layout,
        name=name,
        weights=weights,
        default_weights=_V2[-1] if _V2[-1] in weights else next(iter(weights), None),
        image_size=image_size,
        resize=resize,
        params=params,
        gflops=gflops,
        top1=top1,
        file_size_mb=file_size_mb,
        note=_NOTES[name],
        own=not weights,
    )
