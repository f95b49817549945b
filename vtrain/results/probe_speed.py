"""How fast a backbone is here: forward passes over decoded images, timed."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vtrain.data.batches import Batch
from vtrain.data.loaders import build_eval_loader
from vtrain.data.transforms import EvalTransform
from vtrain.inference.forward import compute_outputs, find_model_device
from vtrain.inference.streams import choose_streams, compute_in_order
from vtrain.runs.model_argument import LoadedModel

WARM_UP_IMAGES = 8
ROUND_IMAGES = 32  # in each batch of a timed round
MEASURE_SECONDS = 0.7
MIN_ROUNDS = 2
MAX_ROUND_SECONDS = 3.0


def measure_rate(model: LoadedModel, paths: Sequence[Path]) -> float:
    """Images per second of forward passes over decoded images, as the commands run them.

    The first images of `paths` are taken, as often as needed. The fastest of several rounds after
    a warm-up: what slows one down is something else on the machine.
    """
    images = _read_some(model, paths)
    device = find_model_device(model.classifier)
    streams = choose_streams(device)

    def run(batch_images: Tensor, count: int) -> float:
        index = torch.arange(len(batch_images))
        batches = [Batch(batch_images, index, index)] * count
        started = time.perf_counter()
        for _, output in compute_in_order(batches, compute, streams=streams):
            output.cpu()  # waits for a GPU
        return time.perf_counter() - started

    def compute(batch: Batch) -> Tensor:
        forward = model.classifier.forward_features
        return compute_outputs(forward, batch.inputs, model.preprocessing, device)

    few = images[:WARM_UP_IMAGES]
    run(few, streams)
    warm = run(few, streams)
    slow = warm * len(images) / len(few) > MAX_ROUND_SECONDS
    used = few if slow else images
    times: list[float] = [warm] if slow else []
    until = time.perf_counter() + MEASURE_SECONDS
    while not times or (not slow and len(times) < MIN_ROUNDS) or time.perf_counter() < until:
        times.append(run(used, streams))
    return streams * len(used) / min(times)


def _read_some(model: LoadedModel, paths: Sequence[Path]) -> Tensor:
    """Some decoded images, uint8 `[B, 3, H, W]`; black ones where none can be read."""
    loader = build_eval_loader(
        paths[: 2 * ROUND_IMAGES],
        None,
        EvalTransform(model.preprocessing),
        batch_size=ROUND_IMAGES,
        workers=0,
    )
    for batch in loader:
        if len(batch):
            repeats = -(-ROUND_IMAGES // len(batch))
            return torch.cat([batch.inputs] * repeats)[:ROUND_IMAGES]
    edge = model.preprocessing.crop
    return torch.zeros(ROUND_IMAGES, 3, edge, edge, dtype=torch.uint8)
