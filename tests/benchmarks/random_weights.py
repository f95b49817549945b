"""A file of random weights, as if they had been trained: frozen backbones are refused without one.

python -m tests.benchmarks.random_weights resnet18 FILE.pth
"""

import argparse
from pathlib import Path

import torch
import torchvision


def main() -> None:
    """Draw torchvision's own initial weights, the same every time, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone")
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(given.backbone, weights=None).state_dict(), given.file)


if __name__ == "__main__":
    main()
