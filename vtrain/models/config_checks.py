"""What only the zoo can say of a config: backbone, weights, stages, freeze rules, image size."""

import re
from collections.abc import Iterator
from pathlib import Path

from vtrain.config.checks import Check
from vtrain.config.input_paths import looks_like_path
from vtrain.config.keys import UNTIL, FitConfig, FreezeRule
from vtrain.config.mistakes import KeyMistake
from vtrain.config.run_files import MODEL_NAME
from vtrain.errors import UsageError, suggest
from vtrain.models.backbone_spec import BackboneSpec
from vtrain.models.zoo import check_image_size, check_options, find_backbone, find_weights
from vtrain.system.files import describe_missing


def _sentence(error: UsageError) -> str:
    if error.hint is None:
        return error.message
    return error.message + (" " if error.message.endswith("?") else "; ") + error.hint


def check_backbone(config: FitConfig) -> Iterator[KeyMistake]:
    """A backbone that the zoo does not have."""
    try:
        find_backbone(config.model.backbone)
    except UsageError as error:
        yield KeyMistake(("model", "backbone"), _sentence(error))


def check_weights_path(config: FitConfig) -> Iterator[KeyMistake]:
    """A file of weights that is not there, or is none."""
    weights, key = config.model.weights, ("model", "weights")
    if "://" in weights:
        yield KeyMistake(key, f"got {weights}; download it, and give the path of the file")
    elif looks_like_path(weights, Path()):
        path = Path(weights)
        problem = describe_missing(path, "file or run folder")
        if problem is None and path.is_dir() and not (path / MODEL_NAME).is_file():
            problem = f"{path} has no {MODEL_NAME}; it is not the folder of a finished run"
        elif problem is None and not path.is_dir() and not path.is_file():
            problem = f"{path} is not a regular file"  # a pipe would be waited for
        if problem is not None:
            yield KeyMistake(key, problem)


def check_frozen_random(config: FitConfig) -> Iterator[KeyMistake]:
    """Random weights that are frozen."""
    if config.model.weights != "none" or not isinstance(config.freeze, str):
        return
    if config.freeze != "none":
        text = (
            f"{config.freeze} freezes a backbone with random weights (weights: none), which "
            "learns nothing; write freeze: none"
        )
        yield KeyMistake(("freeze",), text, ("model", "weights"))


def check_weights_name(config: FitConfig) -> Iterator[KeyMistake]:
    """Weights that the backbone does not have."""
    weights, key = config.model.weights, ("model", "weights")
    if weights == "none" or looks_like_path(weights, Path()):
        return
    for exact in ("none", "DEFAULT"):
        if weights.lower() == exact.lower() and weights != exact:
            yield KeyMistake(key, f"got {weights!r}; did you mean {exact}?")
            return
    spec = find_backbone(config.model.backbone)
    try:
        find_weights(spec, weights)
    except UsageError as error:
        # Without weights nothing can be frozen either: say both at once.
        frozen = not spec.weights and isinstance(config.freeze, str) and config.freeze != "none"
        text = _sentence(error) + (", and freeze: none" if frozen else "")
        yield KeyMistake(key, text, ("model", "backbone"))


def check_until(config: FitConfig) -> Iterator[KeyMistake]:
    """`until:STAGE` with a stage that the backbone does not have."""
    if isinstance(config.freeze, str) and config.freeze.startswith(UNTIL):
        spec = find_backbone(config.model.backbone)
        stage = config.freeze.removeprefix(UNTIL)
        if stage not in spec.stage_names:
            yield KeyMistake(("freeze",), _describe_unknown_stage(spec, stage))


def _describe_unknown_stage(spec: BackboneSpec, stage: str) -> str:
    near = suggest(stage, spec.stage_names, lead="; ")
    return f"{spec.name} has no stage {stage!r}, only {', '.join(spec.stage_names)}{near}"


def check_rules(config: FitConfig) -> Iterator[KeyMistake]:
    """Freeze rules that train nothing or match no parameter."""
    if isinstance(config.freeze, str):
        return
    if all(rule.lr_scale is None for rule in config.freeze):
        text = "no rule has a number as lr_scale, so there is nothing to train; add "
        yield KeyMistake(("freeze",), text + "{pattern: head, lr_scale: 1.0}")
    spec = find_backbone(config.model.backbone)
    for index, rule in enumerate(config.freeze):
        problem = _describe_pattern(spec, rule)
        if problem is not None:
            yield KeyMistake(("freeze", index, "pattern"), problem)


def _describe_pattern(spec: BackboneSpec, rule: FreezeRule) -> str | None:
    """What is wrong with a pattern, as far as names tell; the rest shows when it is applied."""
    pattern = rule.pattern
    start = re.split(r"[*?[]", pattern, maxsplit=1)[0]
    if pattern == "head" or pattern in spec.stage_names:
        return None
    if start == pattern and "." not in pattern:
        return _describe_unknown_stage(spec, pattern)
    heads = ("head.", *(f"backbone.{p}" for stage in spec.stages for p in stage.prefixes))
    if any(known.startswith(start) or start.startswith(known) for known in heads):
        return None
    if not start.startswith(("head", "backbone")):
        return f"{pattern!r} matches no parameter; did you mean backbone.{pattern}?"
    return f"{pattern!r} matches no parameter of {spec.name}; they start with {heads[1]}, …"


def check_builder_options(config: FitConfig) -> Iterator[KeyMistake]:
    """Options that the backbone's builder does not take."""
    spec = find_backbone(config.model.backbone)
    for name, value in config.model.options.items():
        try:
            check_options(spec, {name: value})
        except UsageError as error:
            yield KeyMistake(("model", "options", name), _sentence(error))


def check_input_size(config: FitConfig) -> Iterator[KeyMistake]:
    """An image size that the backbone cannot take."""
    if config.data.image_size is not None:
        try:
            check_image_size(find_backbone(config.model.backbone), config.data.image_size)
        except UsageError as error:
            yield KeyMistake(("data", "image_size"), _sentence(error))


CHECKS: tuple[Check, ...] = (
    (("model.backbone",), check_backbone),
    (("model.weights",), check_weights_path),
    (("model.backbone", "model.weights"), check_weights_name),
    (("model.backbone", "model.weights", "freeze"), check_frozen_random),
    (("model.backbone", "freeze"), check_until),
    (("model.backbone", "freeze"), check_rules),
    (("model.backbone", "model.options"), check_builder_options),
    (("model.backbone", "data.image_size"), check_input_size),
)
