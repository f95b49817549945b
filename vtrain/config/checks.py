"""What types and ranges cannot say: names, paths and values that must fit together.

Each check is a small function over a config that is valid in itself; `CHECKS` lists them with the
keys they read, and a check is left out when one of its keys is already known to be wrong.
"""

import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from vtrain.config.keys import UNTIL, FitConfig, FreezeRule
from vtrain.config.source import ConfigSource, Mistake, dotted, list_names
from vtrain.config.yaml12 import KeyPath, clip
from vtrain.data.image_sets import LIST_SUFFIXES, TAR_SUFFIX
from vtrain.errors import UsageError
from vtrain.models.zoo import (
    BackboneSpec,
    check_image_size,
    check_options,
    find_backbone,
    find_weights,
)

WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
MODEL_FILE = "model.safetensors"
MAX_NAME_BYTES = 255  # of one file or folder, on every usual file system
_NO_HOME = "write out the home folder, ~ is not expanded"


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake about the value at `path`; shown at `at` where that value is only a default."""

    path: KeyPath
    text: str
    at: KeyPath = ()


Check = Callable[[FitConfig], Iterator[Finding]]


def check_config(source: ConfigSource, config: FitConfig, broken: set[str]) -> None:
    """Run every check whose keys are sound, and add what it finds to `source`."""
    for reads, check in CHECKS:
        if any(_overlap(key, wrong) for key in reads for wrong in broken):
            continue
        for finding in check(config):
            known = finding.path in source.values or finding.path in source.keys
            place = source.find_place(finding.path if known else finding.at or finding.path)
            source.mistakes.append(Mistake(place, dotted(finding.path), finding.text))
            broken.add(dotted(finding.path))


def _overlap(a: str, b: str) -> bool:
    """Whether one dotted key is the other or lies within it."""
    short, long = sorted((a, b), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


def _sentence(error: UsageError) -> str:
    if error.hint is None:
        return error.message
    return error.message + (" " if error.message.endswith("?") else "; ") + error.hint


def _check_run_dir(config: FitConfig) -> Iterator[Finding]:
    if config.run_dir is None:
        return
    path = Path(config.run_dir)
    if config.run_dir.startswith("~"):
        yield Finding(("run_dir",), f"got {config.run_dir}; {_NO_HOME}")
    if any(unicodedata.category(char) == "Cc" for char in config.run_dir):
        text = f"got {config.run_dir!r}, with a control character"
        yield Finding(("run_dir",), text + r"; in double quotes \ begins an escape")
    if (problem := _describe_unreachable(path)) is not None:
        yield Finding(("run_dir",), problem)
    for part in path.parts:
        if len(os.fsencode(part)) > MAX_NAME_BYTES:
            yield Finding(("run_dir",), f"{clip(part)} is longer than {MAX_NAME_BYTES} bytes")
    for each in (path, *path.parents):
        if _exists(each) and not each.is_dir():
            yield Finding(("run_dir",), f"{each} is a file, expected a folder to write to")


def _check_backbone(config: FitConfig) -> Iterator[Finding]:
    try:
        find_backbone(config.model.backbone)
    except UsageError as error:
        yield Finding(("model", "backbone"), _sentence(error))


def _check_weights_path(config: FitConfig) -> Iterator[Finding]:
    weights, key = config.model.weights, ("model", "weights")
    if "://" in weights:
        yield Finding(key, f"got {weights}; download it, and give the path of the file")
    elif looks_like_path(weights):
        path = Path(weights)
        problem = describe_missing(path, "file or run folder")
        if problem is None and path.is_dir() and not (path / MODEL_FILE).is_file():
            problem = f"{path} has no {MODEL_FILE}; it is not the folder of a finished run"
        elif problem is None and not path.is_dir() and not path.is_file():
            problem = f"{path} is not a regular file"  # a pipe would be waited for
        if problem is not None:
            yield Finding(key, problem)


def _check_weights_name(config: FitConfig) -> Iterator[Finding]:
    weights, key = config.model.weights, ("model", "weights")
    if weights == "none" or looks_like_path(weights):
        return
    for exact in ("none", "DEFAULT"):
        if weights.lower() == exact.lower() and weights != exact:
            yield Finding(key, f"got {weights!r}; did you mean {exact}?")
            return
    spec = find_backbone(config.model.backbone)
    try:
        find_weights(spec, weights)
    except UsageError as error:
        # Without weights nothing can be frozen either: say both at once.
        frozen = not spec.weights and isinstance(config.freeze, str) and config.freeze != "none"
        text = _sentence(error) + (", and freeze: none" if frozen else "")
        yield Finding(key, text, ("model", "backbone"))


def looks_like_path(weights: str) -> bool:
    """Whether `model.weights` names a file or folder, and not weights that are published."""
    if weights in ("none", "DEFAULT") or weights.startswith("IMAGENET1K_"):
        return False
    written_so = any(sign in weights for sign in "/\\") or weights.startswith((".", "~"))
    return written_so or weights.endswith(WEIGHTS_SUFFIXES) or _exists(Path(weights))


def describe_missing(path: Path, what: str) -> str | None:
    """Why there is nothing at `path`, and what stands where its first missing part should be."""
    if _exists(path):
        return None
    if (unreachable := _describe_unreachable(path)) is not None:
        return unreachable
    return f"no such {what}: {path}; {explain_missing(path)}"


def explain_missing(path: Path) -> str:
    """What stands where the first missing part of `path` should be."""
    if path.parts and path.parts[0].startswith("~"):
        return _NO_HOME
    missing = next((part for part in (*reversed(path.parents), path) if not _exists(part)), path)
    if missing.is_symlink():
        return f"{missing} is a broken link to {missing.readlink()}"
    close = get_close_matches(missing.name, list_names(missing.parent), n=1, cutoff=0.5)
    if close:
        guess = missing.with_name(close[0])
        whole = guess / path.relative_to(missing)
        return f"did you mean {whole if _exists(whole) else guess}?"
    if _exists(missing.parent) and not missing.parent.is_dir():
        return f"{missing.parent} is a file"
    if missing != path:
        return f"{missing} does not exist"
    return "paths are relative to the working directory"


def _describe_unreachable(path: Path) -> str | None:
    """Why one cannot even ask whether there is something at `path`: links in a loop, for one."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"{clip(str(path))} cannot be read: {str(reason).lower()}"
    return None


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _check_frozen_random(config: FitConfig) -> Iterator[Finding]:
    if config.model.weights != "none" or not isinstance(config.freeze, str):
        return
    if config.freeze != "none":
        text = (
            f"{config.freeze} freezes a backbone with random weights (weights: none), which "
            "learns nothing; write freeze: none"
        )
        yield Finding(("freeze",), text, ("model", "weights"))


def _check_until(config: FitConfig) -> Iterator[Finding]:
    if isinstance(config.freeze, str) and config.freeze.startswith(UNTIL):
        spec = find_backbone(config.model.backbone)
        stage = config.freeze.removeprefix(UNTIL)
        text = _describe_unknown_stage(spec, stage)
        if text is not None:
            yield Finding(("freeze",), text)


def _describe_unknown_stage(spec: BackboneSpec, stage: str) -> str | None:
    names = [each.name for each in spec.stages]
    if stage in names:
        return None
    close = get_close_matches(stage, names, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return f"{spec.name} has no stage {stage!r}, only {', '.join(names)}{guess}"


def _check_rules(config: FitConfig) -> Iterator[Finding]:
    if isinstance(config.freeze, str):
        return
    if all(rule.lr_scale is None for rule in config.freeze):
        text = "no rule has a number as lr_scale, so there is nothing to train; add "
        yield Finding(("freeze",), text + "{pattern: head, lr_scale: 1.0}")
    spec = find_backbone(config.model.backbone)
    for index, rule in enumerate(config.freeze):
        problem = _describe_pattern(spec, rule)
        if problem is not None:
            yield Finding(("freeze", index, "pattern"), problem)


def _describe_pattern(spec: BackboneSpec, rule: FreezeRule) -> str | None:
    """What is wrong with a pattern, as far as names tell; the rest shows when it is applied."""
    pattern = rule.pattern
    start = _literal_start(pattern)
    if pattern == "head" or pattern in {stage.name for stage in spec.stages}:
        return None
    if start == pattern and "." not in pattern:
        return _describe_unknown_stage(spec, pattern)
    heads = ("head.", *(f"backbone.{p}" for stage in spec.stages for p in stage.prefixes))
    if any(known.startswith(start) or start.startswith(known) for known in heads):
        return None
    if not start.startswith(("head", "backbone")):
        return f"{pattern!r} matches no parameter; did you mean backbone.{pattern}?"
    return f"{pattern!r} matches no parameter of {spec.name}; they start with {heads[1]}, …"


def _literal_start(pattern: str) -> str:
    """The part of a glob before its first wildcard."""
    for position, character in enumerate(pattern):
        if character in "*?[":
            return pattern[:position]
    return pattern


def _check_options(config: FitConfig) -> Iterator[Finding]:
    spec = find_backbone(config.model.backbone)
    for name, value in config.model.options.items():
        try:
            check_options(spec, {name: value})
        except UsageError as error:
            yield Finding(("model", "options", name), _sentence(error))


def _check_image_size(config: FitConfig) -> Iterator[Finding]:
    if config.data.image_size is not None:
        try:
            check_image_size(find_backbone(config.model.backbone), config.data.image_size)
        except UsageError as error:
            yield Finding(("data", "image_size"), _sentence(error))


def _check_folder(config: FitConfig, *, name: str) -> Iterator[Finding]:
    value = getattr(config.data, name)
    if value is None:
        return
    problem = describe_missing(Path(value), "folder")
    is_source = value.lower().endswith((TAR_SUFFIX, *LIST_SUFFIXES))
    is_file = problem is None and Path(value).is_file()
    if problem is None and not Path(value).is_dir() and not (is_file and is_source):
        kind = "a file" if is_file else "not a regular file"
        others = f"a {TAR_SUFFIX} file or a list ({' '.join(LIST_SUFFIXES)})"
        problem = f"{value} is {kind}, expected a folder of class folders, {others}"
    if problem is not None:
        yield Finding(("data", name), problem)


def _check_exclude(config: FitConfig) -> Iterator[Finding]:
    if config.data.exclude is None:
        return
    path = Path(config.data.exclude)
    problem = describe_missing(path, "file")
    if problem is None and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        problem = f"{path} is {kind}, expected a text file with one path per line"
    if problem is not None:
        yield Finding(("data", "exclude"), problem)


def _check_validation(config: FitConfig) -> Iterator[Finding]:
    if config.data.val is None and config.data.val_fraction is None:
        text = "no validation images; set data.val to a folder, or val_fraction: 0.2"
        yield Finding(("data", "val"), text)
    if config.data.val is not None and config.data.val_fraction is not None:
        text = "set beside data.val; keep one of them, and set the other to null"
        yield Finding(("data", "val_fraction"), text)


def _check_warmup(config: FitConfig) -> Iterator[Finding]:
    warmup, epochs = config.optim.warmup_epochs, config.train.epochs
    if warmup > epochs:
        text = f"got {warmup:g}, expected at most train.epochs, which is {epochs}"
        yield Finding(("optim", "warmup_epochs"), text, ("train", "epochs"))


def _check_probe(config: FitConfig) -> Iterator[Finding]:
    probe, epochs, path = config.train.probe_epochs, config.train.epochs, ("train", "probe_epochs")
    if probe is not None and config.freeze != "lp-ft":
        yield Finding(path, f"is for freeze: lp-ft only, got freeze: {_freeze_name(config)}")
    elif probe is not None and probe >= epochs:
        yield Finding(path, f"got {probe}, expected fewer than train.epochs, which is {epochs}")


def _freeze_name(config: FitConfig) -> str:
    return config.freeze if isinstance(config.freeze, str) else "a list of rules"


def _check_phases(config: FitConfig) -> Iterator[Finding]:
    if config.freeze == "lp-ft" and config.train.epochs < 2:
        text = "lp-ft needs at least 2 epochs, one for each phase; raise them, or freeze: head"
        yield Finding(("train", "epochs"), text)


def _check_precision(config: FitConfig) -> Iterator[Finding]:
    if config.train.device == "cpu" and config.train.precision == "fp16":
        text = "fp16 does not run on the CPU; expected auto, fp32 or bf16"
        yield Finding(("train", "precision"), text)


# Keys read → check. Order matters: a check may rely on what an earlier one found sound.
CHECKS: tuple[tuple[tuple[str, ...], Check], ...] = (
    (("run_dir",), _check_run_dir),
    (("model.backbone",), _check_backbone),
    (("model.weights",), _check_weights_path),
    (("model.backbone", "model.weights"), _check_weights_name),
    (("model.backbone", "model.weights", "freeze"), _check_frozen_random),
    (("model.backbone", "freeze"), _check_until),
    (("model.backbone", "freeze"), _check_rules),
    (("model.backbone", "model.options"), _check_options),
    (("model.backbone", "data.image_size"), _check_image_size),
    (("data.train",), partial(_check_folder, name="train")),
    (("data.val",), partial(_check_folder, name="val")),
    (("data.test",), partial(_check_folder, name="test")),
    (("data.exclude",), _check_exclude),
    (("data.val", "data.val_fraction"), _check_validation),
    (("optim.warmup_epochs", "train.epochs"), _check_warmup),
    (("freeze", "train.epochs", "train.probe_epochs"), _check_probe),
    (("freeze", "train.epochs"), _check_phases),
    (("train.device", "train.precision"), _check_precision),
)
