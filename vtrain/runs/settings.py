"""The settings of a run: its config, checked by every layer that knows what its keys name."""

from collections.abc import Sequence
from pathlib import Path

from vtrain.config.load import LoadedConfig, load_config
from vtrain.config.run_files import RESOLVED_NAME
from vtrain.data import config_checks as data_checks
from vtrain.data.image_names import is_image_name
from vtrain.data.image_sets import LIST_SUFFIXES, TAR_SUFFIX
from vtrain.errors import ConfigError
from vtrain.models import config_checks as model_checks
from vtrain.system.files import path_exists, real_path
from vtrain.system.text import one_line, quote_path


def load_settings(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Read and check a config; overrides such as `train.epochs=5` win over the file.

    Nothing heavy is imported for it: a mistake is told at once.

    Raises:
        ConfigError: the file cannot be read, or has mistakes: all of them, each with its place.
    """
    _require_config(path)
    checks = (*model_checks.CHECKS, *data_checks.CHECKS)
    return load_config(path, overrides, checks=checks)


def _require_config(path: Path) -> None:
    """Say what was meant where images or a run are given instead of a config."""
    if not path_exists(path):
        return
    is_folder, name = path.is_dir(), real_path(path).name
    settings = path / RESOLVED_NAME
    if is_folder and settings.is_file():
        raise ConfigError(
            f"{one_line(path)}: is the folder of a run, expected a config file",
            f"to go on with it: vtrain fit {quote_path(settings)} run_dir={quote_path(path)} "
            "--resume",
        )
    if path.is_file() and is_image_name(name):
        raise ConfigError(
            f"{one_line(path)}: is an image, expected a config file",
            f"to classify it: vtrain predict {quote_path(path)}",
        )
    is_source = path.is_file() and name.lower().endswith((TAR_SUFFIX, *LIST_SUFFIXES))
    if is_source or (is_folder and not any(each.is_file() for each in path.glob("*.y*ml"))):
        made = quote_path(f"{real_path(path).stem if is_source else name}.yaml")
        raise ConfigError(
            f"{one_line(path)}: is a {'file of images' if is_source else 'folder'}, expected a "
            "config file",
            f"vtrain init {quote_path(path)} writes one, {made}; then: vtrain fit {made}",
        )
