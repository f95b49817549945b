"""Runs the command line: `python -m vtrain`."""

import sys

from vtrain.cli import main

sys.exit(main())
