"""Names of files in a run folder that several layers look for."""

MODEL_NAME = "model.safetensors"  # the best model: all that predict, embed and evaluate need
RESOLVED_NAME = "config.resolved.yaml"  # every value, with absolute paths
CHECKPOINT_NAME = "last.ckpt"  # all that resume needs
