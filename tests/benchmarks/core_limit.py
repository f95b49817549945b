"""What the cores can do at best: computing alone, and reading alone.

    python -m tests.benchmarks.core_limit fit CONFIG [key=value ...]
    python -m tests.benchmarks.core_limit embed FOLDER --model resnet18:none

C is the rate of vtrain's own step (or forward pass) on data in memory (on a GPU: already there),
with all cores; D the rate of its loader with its transform alone, with the number of workers that
is best. Prints one line of JSON: images per second of both, and those workers.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch

from tests.benchmarks.measure import read_metrics
from vtrain.data.batches import Batch
from vtrain.data.folders import scan_images, scan_labelled
from vtrain.data.loaders import ImageLoader, build_eval_loader, build_train_loader
from vtrain.data.sampler import EpochBatchSampler
from vtrain.data.transforms import EvalTransform, TrainTransform
from vtrain.models.backbones import eval_preprocessing
from vtrain.models.zoo import find_backbone
from vtrain.results.embed import embed
from vtrain.runs.fit import fit
from vtrain.runs.model_argument import load_model
from vtrain.runs.settings import load_settings
from vtrain.system.machine import find_device
from vtrain.system.reporter import SILENT

PASSES = 2  # each rate is the best of these, after one that is not counted
READ_BATCH = 32  # where the config leaves it open
READ_AT_LEAST = 1000  # images in one timed pass of the loader


@dataclass(slots=True)
class Memory:
    """Takes the place of the loaders: each reads once and then gives the same batches again.

    `shared` makes all loaders give the batches of the first. `rates` are those of the replays.
    """

    device: torch.device
    shared: bool
    kept: dict[int, tuple[ImageLoader, list[Batch]]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    def patch(self) -> "mock._patch[object]":
        """To use as a context manager."""
        original = ImageLoader.__iter__

        def give(loader: ImageLoader) -> Iterator[Batch]:
            key = 0 if self.shared else id(loader)
            if key not in self.kept:
                batches = [self._place(batch) for batch in original(loader)]
                self.kept[key] = (loader, batches)  # the loader too: its id must not come again
                yield from batches
            else:
                yield from self._replay(self.kept[key][1])

        return mock.patch.object(ImageLoader, "__iter__", give)

    def _place(self, batch: Batch) -> Batch:
        return replace(batch, inputs=batch.inputs.to(self.device))

    def _replay(self, batches: list[Batch]) -> Iterator[Batch]:
        start = self._now()
        yield from batches
        # What was done with the last batch is finished only when the next is asked for.
        self.rates.append(sum(map(len, batches)) / (self._now() - start))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def find_read_rate(load: Callable[[int], Iterable[Batch]]) -> tuple[float, int]:
    """The best rate of a loader alone, images per second, and its number of workers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    choices = sorted({0, max(1, cores // 2), cores, cores + cores // 2})
    return max((_read(load(workers)), workers) for workers in choices)


def _read(batches: Iterable[Batch]) -> float:
    """The best pass after one that starts the workers."""
    rates = []
    for number in range(PASSES + 1):
        start, images = time.perf_counter(), 0
        while images < READ_AT_LEAST:
            images += sum(len(batch) for batch in batches)
        if number:
            rates.append(images / (time.perf_counter() - start))
    return max(rates)


def limit_fit(config: Path, overrides: list[str]) -> dict[str, float]:
    """C and D of a training run, whose own settings apply."""
    memory = Memory(find_device(), shared=False)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        settings = [*overrides, f"run_dir={run_dir}", f"train.epochs={PASSES + 1}"]
        loaded = load_settings(config, settings)
        with memory.patch():
            fit(loaded, reporter=SILENT)
        # The loop's own figure, of the epochs whose data were in memory.
        rates = [float(row["images_per_second"]) for row in read_metrics(run_dir)[1:]]
    if len(memory.rates) < PASSES:
        raise SystemExit("the training loader was made anew: its data were not in memory")
    data = loaded.config.data
    images = scan_labelled(Path(data.train))
    preset = "light" if data.augment == "auto" else data.augment
    preprocessing = eval_preprocessing(find_backbone(loaded.config.model.backbone), None)
    transform = TrainTransform(preprocessing, preset=preset)

    batch_size = READ_BATCH if data.batch_size == "auto" else data.batch_size

    def load(workers: int) -> Iterable[Batch]:
        sampler = EpochBatchSampler(num_images=len(images), batch_size=batch_size, seed=0)
        return build_train_loader(images, transform, sampler=sampler, workers=workers, seed=0)

    return summarize(rates, find_read_rate(load))


def limit_embed(folder: Path, model: str, batch_size: int) -> dict[str, float]:
    """C and D of embedding a folder."""
    loaded = load_model(model, device=find_device(), reporter=SILENT)
    memory = Memory(find_device(), shared=True)
    with tempfile.TemporaryDirectory() as target, memory.patch():
        for number in range(PASSES + 2):
            output = Path(target) / f"{number}.npy"
            embed(folder, output, loaded, batch_size=batch_size, reporter=SILENT)
    paths = list(scan_images(folder)[0])
    transform = EvalTransform(loaded.preprocessing)

    def load(workers: int) -> Iterable[Batch]:
        return build_eval_loader(paths, None, transform, batch_size=batch_size, workers=workers)

    return summarize(memory.rates[1:], find_read_rate(load))


def summarize(compute_rates: list[float], reading: tuple[float, int]) -> dict[str, float]:
    """C, D, the workers of D, and the rate of doing both one after the other."""
    compute, (read, workers) = max(compute_rates), reading
    limit = 1 / (1 / compute + 1 / read)
    return {"compute": compute, "read": read, "workers": workers, "limit": limit}


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=("fit", "embed"))
    parser.add_argument("path", type=Path, help="a config, or a folder of images")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", default="resnet18:none")
    parser.add_argument("--batch-size", type=int, default=32)
    given = parser.parse_args()
    if given.work == "fit":
        found = limit_fit(given.path, given.overrides)
    else:
        found = limit_embed(given.path, given.model, given.batch_size)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
