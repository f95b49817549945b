"""`vtrain env`: versions and devices."""

from vtrain.commands.options import Json
from vtrain.system.terminal import print_json, print_line


def env(as_json: Json = False) -> None:
    """Versions and devices, for bug reports.

    \b
    vtrain env
    vtrain env --json
    """
    from vtrain.system.machine import describe_environment

    environment = describe_environment()
    if as_json:
        print_json({"schema": 1, **environment})
        return
    for name, value in environment.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {text}" for key, text in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        print_line(f"{name}: {'none' if value is None else value}")
