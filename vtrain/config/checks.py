"""What types and ranges cannot say: names, paths and values that must fit together.

Each check is a small function over a config that is valid in itself, with the keys that it reads;
it is left out when one of them is already known to be wrong. Those here know the config alone.
"""

import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vtrain.config.input_paths import shorten_paths
from vtrain.config.keys import FitConfig
from vtrain.config.mistakes import KeyMistake
from vtrain.config.source import ConfigSource, Mistake, dotted
from vtrain.system.files import MAX_NAME_BYTES, describe_unreachable, path_exists
from vtrain.system.text import clip

Check = tuple[tuple[str, ...], Callable[[FitConfig], Iterator[KeyMistake]]]


def check_config(
    source: ConfigSource, config: FitConfig, broken: set[str], checks: Sequence[Check]
) -> None:
    """Run every check whose keys are sound, `checks` first, and add what they find to `source`.

    Order matters: a check may rely on what an earlier one found sound.
    """
    for reads, check in (*checks, *CHECKS):
        if any(_overlap(key, wrong) for key in reads for wrong in broken):
            continue
        for finding in check(config):
            known = finding.path in source.values or finding.path in source.keys
            place = source.find_place(finding.path if known else finding.at or finding.path)
            text = shorten_paths(source, place, finding.text)
            source.mistakes.append(Mistake(place, dotted(finding.path), text))
            broken.add(dotted(finding.path))


def _overlap(a: str, b: str) -> bool:
    """Whether one dotted key is the other or lies within it."""
    short, long = sorted((a, b), key=len)
    return long == short or long.startswith((f"{short}.", f"{short}["))


def _check_run_dir(config: FitConfig) -> Iterator[KeyMistake]:
    if config.run_dir is None:
        return
    path = Path(config.run_dir)
    if any(unicodedata.category(char) == "Cc" for char in config.run_dir):
        text = f"got {config.run_dir!r}, with a control character"
        yield KeyMistake(("run_dir",), text + r"; in double quotes \ begins an escape")
    if (problem := describe_unreachable(path)) is not None:
        yield KeyMistake(("run_dir",), problem)
    for part in path.parts:
        if len(os.fsencode(part)) > MAX_NAME_BYTES:
            yield KeyMistake(("run_dir",), f"{clip(part)} is longer than {MAX_NAME_BYTES} bytes")
    for each in (path, *path.parents):
        if path_exists(each) and not each.is_dir():
            yield KeyMistake(("run_dir",), f"{each} is a file, expected a folder to write to")


def _check_validation(config: FitConfig) -> Iterator[KeyMistake]:
    if config.data.val is not None and config.data.val_fraction is not None:
        text = "set beside data.val; keep one of them, and set the other to null"
        yield KeyMistake(("data", "val_fraction"), text)


def _check_test(config: FitConfig) -> Iterator[KeyMistake]:
    val, test = config.data.val_fraction or 0.0, config.data.test_fraction
    if test is None:
        return
    if config.data.test is not None:
        text = "set beside data.test; keep one of them, and set the other to null"
        yield KeyMistake(("data", "test_fraction"), text)
    elif val + test >= 1:
        text = f"got {test:g}, expected less than {1 - val:g}: data.val_fraction takes {val:g}"
        yield KeyMistake(("data", "test_fraction"), text)


def _check_warmup(config: FitConfig) -> Iterator[KeyMistake]:
    warmup, epochs = config.optim.warmup_epochs, config.train.epochs
    if warmup > epochs:
        text = f"got {warmup:g}, expected at most train.epochs, which is {epochs}"
        yield KeyMistake(("optim", "warmup_epochs"), text, ("train", "epochs"))


def _check_probe(config: FitConfig) -> Iterator[KeyMistake]:
    probe, epochs, path = config.train.probe_epochs, config.train.epochs, ("train", "probe_epochs")
    if probe is not None and config.freeze != "lp-ft":
        policy = config.freeze if isinstance(config.freeze, str) else "a list of rules"
        yield KeyMistake(path, f"is for freeze: lp-ft only, got freeze: {policy}")
    elif probe is not None and probe >= epochs:
        yield KeyMistake(path, f"got {probe}, expected fewer than train.epochs, which is {epochs}")


def _check_phases(config: FitConfig) -> Iterator[KeyMistake]:
    if config.freeze == "lp-ft" and config.train.epochs < 2:
        text = "lp-ft needs at least 2 epochs, one for each phase; raise them, or freeze: head"
        yield KeyMistake(("train", "epochs"), text)


def _check_precision(config: FitConfig) -> Iterator[KeyMistake]:
    if config.train.device == "cpu" and config.train.precision == "fp16":
        text = "fp16 does not run on the CPU; expected auto, fp32 or bf16"
        yield KeyMistake(("train", "precision"), text)


CHECKS: tuple[Check, ...] = (
    (("run_dir",), _check_run_dir),
    (("data.val", "data.val_fraction"), _check_validation),
    (("data.val_fraction", "data.test", "data.test_fraction"), _check_test),
    (("optim.warmup_epochs", "train.epochs"), _check_warmup),
    (("freeze", "train.epochs", "train.probe_epochs"), _check_probe),
    (("freeze", "train.epochs"), _check_phases),
    (("train.device", "train.precision"), _check_precision),
)
