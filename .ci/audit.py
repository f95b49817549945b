"""Looks for known vulnerabilities in the packages beside this Python.

    .venv/bin/python .ci/audit.py

Ends with 1 where there is one that another version has mended; one that none has is only named.
Where no service can be asked, it says so and ends with 0.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

SECONDS = 120  # for each step, so that no network can hold the gate up
SERVICES = ("pypi", "osv")
NOT_OURS = ("pip", "setuptools")  # Python puts its own, often old, into each new environment


def main() -> int:
    """Ask one service after the other; the first that knows any of the packages answers."""
    tool = Path(sys.prefix) / "audit"  # its own environment: it brings thirty packages
    pip = (str(tool / "bin/python"), "-m", "pip", "--timeout", "10", "--retries", "1")
    run(sys.executable, "-m", "venv", str(tool))
    run(*pip, "install", "-q", "pip-audit")
    for service in SERVICES:
        known = ask(tool, service)
        if known:
            return report(known, service)
    sys.stdout.write("audit skipped: no vulnerability service can be reached\n")
    return 0


def run(*command: str) -> str:
    """Standard output; empty where the command cannot be run or does not end in time."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def ask(tool: Path, service: str) -> list[dict[str, Any]]:
    """The packages that the service knows, each with its `vulns`."""
    path = sysconfig.get_path("purelib")
    options = ("--format", "json", "--progress-spinner", "off", "--timeout", "10")
    text = run(str(tool / "bin/pip-audit"), "-s", service, "--path", path, *options)
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError):  # it ended with a traceback
        return []
    # A mirror without vulnerability data answers as well: it knows none of the packages.
    known = [each for each in packages if "skip_reason" not in each]
    return [each for each in known if each["name"] not in NOT_OURS]


def report(known: list[dict[str, Any]], service: str) -> int:
    """Name what was found; 1 where something can be done about it."""
    holes = [(each, hole) for each in known for hole in each["vulns"]]
    for each, hole in holes:
        fixed = ", ".join(hole["fix_versions"]) or "no version yet"
        sys.stdout.write(f"{each['name']} {each['version']}: {hole['id']}, mended in {fixed}\n")
    sys.stdout.write(f"audit: {len(known)} packages asked of {service}, {len(holes)} holes known\n")
    return 1 if any(hole["fix_versions"] for _, hole in holes) else 0


if __name__ == "__main__":
    sys.exit(main())
