"""Names of files in a run folder that several layers look for."""

MODEL_NAME = "model.safetensors"  # the best model: all that predict, embed and evaluate need
CHECKPOINT_NAME = "last.ckpt"  # all that resume needs
