"""Loads the config of a run: a valid `FitConfig`, or one report with every mistake."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vtrain.config.checks import Check, check_config
from vtrain.config.input_paths import settle_paths
from vtrain.config.keys import FitConfig, flatten_config
from vtrain.config.mistakes import raise_report, validate_source
from vtrain.config.source import ConfigSource, load_source


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid config, where each value came from, and the file as it was written.

    `origins` maps each dotted key to `configs/x.yaml:12`, `command line` or `default`; `name` is
    the file's name without its suffix.
    """

    config: FitConfig
    origins: dict[str, str]
    name: str
    text: str


def load_config(
    path: Path, overrides: Sequence[str] = (), *, checks: Sequence[Check] = ()
) -> LoadedConfig:
    """Read, merge and check a config; overrides such as `train.epochs=5` win over the file.

    Paths of inputs are absolute in it. `checks` are those of the layers that know what the keys
    name: data and models.

    Raises:
        ConfigError: the file cannot be read, or has mistakes: all of them, each with its place.
    """
    source = load_source(path, overrides)
    unsettled = settle_paths(source)
    config, broken = validate_source(source)
    check_config(source, config, broken | unsettled, checks)
    raise_report(source)
    return LoadedConfig(config, _find_origins(source, config), path.stem, source.text)


def read_settled_config(path: Path) -> FitConfig:
    """The config of a run that has been made: not checked against the folders of today.

    Raises:
        ConfigError: the file cannot be read, or a key or value is none of a config.
    """
    source = load_source(path, ())
    config, _ = validate_source(source)
    raise_report(source)
    return config


def _find_origins(source: ConfigSource, config: FitConfig) -> dict[str, str]:
    origins = {}
    for key in flatten_config(config):
        path = tuple(key.split("."))
        if key == "model.head.type" and isinstance(source.data["model"].get("head"), str):
            path = path[:-1]  # head: mlp
        place = source.values.get(path)
        origins[key] = place.origin if place else "default"
    return origins
