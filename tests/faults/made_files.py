"""Small real files of every kind that a run writes, made once for each process."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vtrain.config.keys import HeadConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.models.classifier import Classifier, build_classifier
from vtrain.models.model_file import ModelFile, save_model
from vtrain.models.zoo import find_backbone
from vtrain.runs.checkpoint import Checkpoint, save_checkpoint
from vtrain.training.state import TrainState

CLASSES = ("ant", "bee", "cow")
BACKBONE = "simple_cnn"
OPTIONS = {"width_mult": 0.1}


def build_small_classifier(seed: int) -> Classifier:
    """A network of a few thousand random numbers, in evaluation mode."""
    torch.manual_seed(seed)
    return build_classifier(
        find_backbone(BACKBONE),
        num_classes=len(CLASSES),
        head=HeadConfig(),
        image_size=32,
        options=OPTIONS,
    ).eval()


@cache
def build_state(seed: int) -> dict[str, Tensor]:
    """The tensors of the small network."""
    return dict(build_small_classifier(seed).state_dict())


def describe_model() -> ModelFile:
    """What stands in a model file beside its tensors."""
    return ModelFile(
        backbone=BACKBONE,
        options=dict(OPTIONS),
        pretrained_input=False,
        head=HeadConfig().model_dump(),
        classes=CLASSES,
        preprocessing=Preprocessing(resize=36, crop=32),
        config={"seed": 0, "train": {"precision": "fp32"}},
        metrics={"epoch": 1, "val_top1": 0.5},
        versions={"vtrain": "0.1.0"},
    )


@cache
def build_checkpoint(seed: int) -> Checkpoint:
    """What a run with AdamW and an average saves after one step; `seed` is its step as well."""
    classifier = build_small_classifier(seed)
    average = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    groups = [{"params": list(classifier.parameters()), "stage": "head", "peak_lrs": [1e-3]}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    classifier(torch.rand(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return Checkpoint(
        model=dict(classifier.state_dict()),
        ema=average,
        optimizer=optimizer.state_dict(),
        scaler={},
        state=TrainState(epoch=1, step=seed, history=[{"epoch": 1, "val_top1": 0.5}]),
        planned_epochs=4,
        frozen={"backbone.stem.0.weight": "ab12"},
        config={"train.epochs": 4, "freeze": "none"},
        data={"classes": list(CLASSES)},
        machine={"device": "cpu", "precision": "fp32", "threads": 1, "batch_size": 2},
    )


@cache
def checkpoint_bytes(seed: int = 1) -> bytes:
    """The content of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "last.ckpt", build_checkpoint(seed))
        return (Path(folder) / "last.ckpt").read_bytes()


@cache
def model_bytes(seed: int = 1) -> bytes:
    """The content of a model file."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model.safetensors", build_state(seed), describe_model())
        return (Path(folder) / "model.safetensors").read_bytes()
