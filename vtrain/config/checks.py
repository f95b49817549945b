"""What types and ranges cannot say: names, paths and values that must fit together.

Each check is a small function over a config that is valid in itself; `CHECKS` lists them with the
keys they read, and a check is left out when one of its keys is already known to be wrong.
"""

import os
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vtrain.config.keys import FitConfig
from vtrain.config.mistakes import Finding
from vtrain.config.source import ConfigSource, Mistake, dotted
from vtrain.data.config_checks import check_exclude, check_folder
from vtrain.models.config_checks import (
    check_backbone,
    check_builder_options,
    check_input_size,
    check_rules,
    check_until,
    check_weights_name,
    looks_like_path,
)
from vtrain.system.files import (
    MAX_NAME_BYTES,
    NO_HOME,
    describe_missing,
    describe_unreachable,
    path_exists,
)
from vtrain.system.text import clip

MODEL_FILE = "model.safetensors"

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


def _check_run_dir(config: FitConfig) -> Iterator[Finding]:
    if config.run_dir is None:
        return
    path = Path(config.run_dir)
    if config.run_dir.startswith("~"):
        yield Finding(("run_dir",), f"got {config.run_dir}; {NO_HOME}")
    if any(unicodedata.category(char) == "Cc" for char in config.run_dir):
        text = f"got {config.run_dir!r}, with a control character"
        yield Finding(("run_dir",), text + r"; in double quotes \ begins an escape")
    if (problem := describe_unreachable(path)) is not None:
        yield Finding(("run_dir",), problem)
    for part in path.parts:
        if len(os.fsencode(part)) > MAX_NAME_BYTES:
            yield Finding(("run_dir",), f"{clip(part)} is longer than {MAX_NAME_BYTES} bytes")
    for each in (path, *path.parents):
        if path_exists(each) and not each.is_dir():
            yield Finding(("run_dir",), f"{each} is a file, expected a folder to write to")


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


def _check_frozen_random(config: FitConfig) -> Iterator[Finding]:
    if config.model.weights != "none" or not isinstance(config.freeze, str):
        return
    if config.freeze != "none":
        text = (
            f"{config.freeze} freezes a backbone with random weights (weights: none), which "
            "learns nothing; write freeze: none"
        )
        yield Finding(("freeze",), text, ("model", "weights"))


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
    (("model.backbone",), check_backbone),
    (("model.weights",), _check_weights_path),
    (("model.backbone", "model.weights"), check_weights_name),
    (("model.backbone", "model.weights", "freeze"), _check_frozen_random),
    (("model.backbone", "freeze"), check_until),
    (("model.backbone", "freeze"), check_rules),
    (("model.backbone", "model.options"), check_builder_options),
    (("model.backbone", "data.image_size"), check_input_size),
    (("data.train",), partial(check_folder, name="train")),
    (("data.val",), partial(check_folder, name="val")),
    (("data.test",), partial(check_folder, name="test")),
    (("data.exclude",), check_exclude),
    (("data.val", "data.val_fraction"), _check_validation),
    (("optim.warmup_epochs", "train.epochs"), _check_warmup),
    (("freeze", "train.epochs", "train.probe_epochs"), _check_probe),
    (("freeze", "train.epochs"), _check_phases),
    (("train.device", "train.precision"), _check_precision),
)
