"""Where runs lie, and names of files in a run folder that several layers look for."""

from pathlib import Path

MODEL_NAME = "model.safetensors"  # the best model: all that predict, embed and evaluate need
RUNS = Path("runs")
RESOLVED_NAME = "config.resolved.yaml"  # every value, with absolute paths
CHECKPOINT_NAME = "last.ckpt"  # all that resume needs
