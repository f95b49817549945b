"""`vtrain predict one.jpg` in a new process against a bare script: target S6."""

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.images import list_files, prepare_photographs
from tests.benchmarks.measure import (
    VTRAIN,
    Goal,
    Row,
    Settings,
    alternate,
    run_process,
    suite_command,
)

BACKBONE = "resnet18"
ROUNDS = 5  # at least: one takes a few seconds
BARE_SCRIPT = """
import sys
import torch
import torchvision
from PIL import Image

model = torchvision.models.resnet18(weights=None).eval()
weights = torchvision.models.ResNet18_Weights.DEFAULT
image = Image.open(sys.argv[1]).convert("RGB")
with torch.no_grad():
    probabilities = model(weights.transforms()(image)[None]).softmax(1)[0]
values, indices = probabilities.topk(5)
for value, index in zip(values.tolist(), indices.tolist()):
    print(f"{weights.meta['categories'][index]} {value:.1%}")
"""


def benchmark(settings: Settings) -> Iterator[Row]:
    """Whole processes; both draw random weights, and the files are in memory already."""
    path = list_files(prepare_photographs(settings).val)[0]
    ours: list[str | Path] = [*VTRAIN, "predict", path, "-m", f"{BACKBONE}:none"]
    bare: list[str | Path] = [sys.executable, "-c", BARE_SCRIPT, path]
    for command in (ours, bare):
        run_process(command)
    found = alternate(
        {
            "vtrain": lambda: {"whole": run_process(ours).seconds},
            "bare": lambda: {"whole": run_process(bare).seconds},
        },
        settings.rounds if settings.quick else max(settings.rounds, ROUNDS),
    )
    vtrain, script = found["vtrain"]["whole"], found["bare"]["whole"]
    yield Row(
        "S6",
        f"predict one image, {BACKBONE} with random weights, whole process; other side: a bare "
        "script with torchvision",
        vtrain.text("s"),
        script.text("s"),
        vtrain.median / script.median,
        Goal(1.1, at_least=False),
        suite_command("S6", settings),
    )
