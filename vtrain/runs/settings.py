"""The settings of a run: its config, checked by every layer that knows what its keys name."""

from collections.abc import Sequence
from pathlib import Path

from vtrain.config.load import LoadedConfig, load_config
from vtrain.data import config_checks as data_checks
from vtrain.models import config_checks as model_checks


def load_settings(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read and check a config; overrides such as `train.epochs=5` win over the file.

    Nothing heavy is imported for it: a mistake is told at once.

    Raises:
        ConfigError: the file cannot be read, or has mistakes: all of them, each with its place.
    """
    checks = (*model_checks.CHECKS, *data_checks.CHECKS)
    return load_config(path, overrides, checks=checks)
