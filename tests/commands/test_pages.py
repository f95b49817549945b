"""The pages that commands write, opened in a browser: nothing overflows, nothing is fetched."""

from pathlib import Path

from tests.helpers.browser import check_page
from tests.helpers.program import Program


def test_pages_of_all_commands(folder: Path, program: Program) -> None:
    """One start of the browser for all: that is what takes long."""
    odd = "<i>bee&amp; and a name that goes on for longer than a phone is wide, " * 3
    for split in ("train", "val"):
        Path(f"images/{split}/bee").rename(f"images/{split}/{odd}")
    assert program("fit", "tiny.yaml", "-q", "train.epochs=1", "run_dir=runs/odd").code == 0
    assert program("embed", "images", "x.npy", "-q", "-m", "runs/odd").code == 0
    commands = {
        "check": ["check", "images"],
        "suspects": ["suspects", "runs/odd"],
        "neighbors": ["neighbors", "0", "x.npy", "-m", "runs/odd"],
        "probe": ["probe", "images/train", "-b", "simple_cnn:none"],
    }
    for name, arguments in commands.items():
        done = program(*arguments, "-o", f"{name}.html")
        assert done.code in (0, 3), done.err
    check_page(*(Path(f"{name}.html") for name in commands))
