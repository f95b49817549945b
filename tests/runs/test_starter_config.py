"""`vtrain init`: what it sees in a folder, and that the config it writes is ready to run."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vtrain.config.keys import FitConfig
from vtrain.errors import DataError, UsageError
from vtrain.runs.settings import load_settings
from vtrain.runs.starter_config import (
    MAX_HEADERS,
    FolderSummary,
    build_config_text,
    choose_batch_size,
    inspect_folder,
    write_config,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(folder: str, count: int, *, size: tuple[int, int] = (12, 8), suffix: str = ".png") -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", size, (index % 256, 0, 0)).save(Path(folder) / f"{index:04}{suffix}")


def load(text: str) -> FitConfig:
    write_config(Path("config.yaml"), text)
    config = load_settings(Path("config.yaml"), ()).config
    Path("config.yaml").unlink()
    return config


def comments(text: str) -> str:
    """The comment lines as one, so that wrapping does not matter."""
    lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    return " ".join(lines)


def test_splits_of_a_folder() -> None:
    for split, count in (("train", 30), ("valid", 6), ("test", 4)):
        draw(f"flowers/{split}/daisy", count)
        draw(f"flowers/{split}/rose", count, suffix=".jpg")
    Path("flowers/train/daisy/notes.txt").touch()
    summary = inspect_folder(Path("flowers"))
    assert summary.classes == ("daisy", "rose")
    assert summary.counts == {"train": (30, 30), "val": (6, 6), "test": (4, 4)}
    assert summary.formats == {".png": 40, ".jpg": 40}
    assert summary.skipped == 1
    assert summary.training_images == 60
    text = build_config_text(summary)
    config = load(text)
    assert config.data.train == str(Path("flowers/train").absolute())
    assert config.data.val == str(Path("flowers/valid").absolute())
    assert config.data.test == str(Path("flowers/test").absolute())
    assert config.data.val_fraction is None
    assert config.model.backbone == "resnet18"
    assert config.model.weights == "DEFAULT"
    assert config.data.batch_size == 8
    facts = comments(text)
    assert "images: 60 train, 12 val, 8 test" in facts
    assert "classes: 2, 30 training images each" in facts
    assert "class names: daisy, rose" in facts
    assert "short side 8 px, long side 12 px" in facts
    assert "not used: 1 files" in facts
    assert "note: half of the images are at most 8 px" in facts
    assert "smallest class" not in facts
    assert "times the images" not in facts


def test_class_folders_get_a_validation_share() -> None:
    draw("photos/cat", 50, size=(300, 300))
    draw("photos/dog", 5, size=(300, 300))
    summary = inspect_folder(Path("photos"))
    assert (summary.val, summary.test) == (None, None)
    assert summary.training_images == 44
    text = build_config_text(summary, backbone="mobilenet_v3_small")
    config = load(text)
    assert config.data.train == str(Path("photos").absolute())
    assert config.data.val_fraction == 0.2
    assert config.model.backbone == "mobilenet_v3_small"
    facts = comments(text)
    assert "the smallest class has 5 training images" in facts
    assert "the largest class has 10 times the images" in facts
    assert "half of the images are at most" not in facts


def test_a_folder_with_train_and_test_only() -> None:
    for split in ("train", "test"):
        draw(f"set/{split}/a", 4)
        draw(f"set/{split}/b", 4)
    config = load(build_config_text(inspect_folder(Path("set"))))
    assert (config.data.val, config.data.val_fraction) == (None, 0.2)
    assert config.data.test == str(Path("set/test").absolute())


def test_own_backbone_is_trained_from_scratch() -> None:
    draw("set/a", 4)
    draw("set/b", 4)
    config = load(build_config_text(inspect_folder(Path("set")), backbone="simple_cnn"))
    assert (config.model.weights, config.freeze) == ("none", "none")
    assert config.optim.backbone_lr is None


def test_odd_sizes_are_noted() -> None:
    for name in ("a", "b"):
        draw(f"long/{name}", 3, size=(900, 300))
        draw(f"large/{name}", 1, size=(2100, 2100), suffix=".gif")
    text = comments(build_config_text(inspect_folder(Path("long"))))
    assert "3 or more times as long as wide" in text
    text = comments(build_config_text(inspect_folder(Path("large"))))
    assert "half of the images are over 2000 px" in text


def test_names_and_damaged_images_do_no_harm() -> None:
    root = "it's: a #1 'set'\n- x"
    for name in ("no", "a\n  seed: 5", "\x1b[31m", "ü"):
        draw(f"{root}/{name}", 3)
    Path(root, "no", "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    Path(root, "no", "bomb.bmp").write_bytes(
        b"BM" + bytes(16) + b"\xff\xff\xff\x7f" * 2 + bytes(40)
    )
    summary = inspect_folder(Path(root))
    assert summary.sizes == ((12, 8),) * 12
    text = build_config_text(summary)
    assert "\x1b" not in text
    config = load(text)
    assert config.data.train == str(Path(root).absolute())
    assert config.seed == 0


def test_name_that_is_not_unicode() -> None:
    summary = FolderSummary(
        train=Path("\udce9"),
        val=None,
        test=None,
        classes=("a", "b"),
        counts={"train": (40, 40)},
        sizes=(),
        formats={".png": 80},
        skipped=0,
    )
    with pytest.raises(UsageError, match="not valid UTF-8") as caught:
        build_config_text(summary)
    assert caught.value.hint == "rename the folder"


def test_many_classes_are_cut_short() -> None:
    for index in range(30):
        draw(f"set/class{index:02}", 2)
    text = build_config_text(inspect_folder(Path("set")))
    assert "class19 and 10 more" in comments(text)
    assert max(map(len, text.splitlines())) <= 100
    assert load(text).data.train == str(Path("set").absolute())


def test_headers_are_read_from_a_sample_over_all_classes() -> None:
    draw("set/a", MAX_HEADERS, size=(8, 8))
    draw("set/b", MAX_HEADERS, size=(16, 16))
    sizes = inspect_folder(Path("set")).sizes
    assert len(sizes) == MAX_HEADERS
    assert sizes.count((8, 8)) == sizes.count((16, 16))


@pytest.mark.parametrize(
    ("images", "batch_size"),
    [(1, 1), (2, 2), (7, 2), (16, 4), (60, 8), (127, 16), (128, 32), (10**6, 32)],
)
def test_batch_size_suits_the_number_of_images(images: int, batch_size: int) -> None:
    assert choose_batch_size(images) == batch_size


def test_training_images_are_counted_as_the_split_does() -> None:
    from vtrain.data.folders import scan_labelled
    from vtrain.data.splits import hold_out

    for name, count in (("a", 1), ("b", 2), ("c", 7), ("d", 13)):
        draw(f"set/{name}", count)
    found, _ = hold_out(scan_labelled(Path("set")), {"val": 0.2}, seed=0)
    assert inspect_folder(Path("set")).training_images == len(found["train"])


def test_folders_that_hold_no_classes() -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError):
        inspect_folder(Path("empty"))
    with pytest.raises(DataError):
        inspect_folder(Path("missing"))


def test_unknown_backbone() -> None:
    draw("set/a", 2)
    draw("set/b", 2)
    with pytest.raises(UsageError, match="did you mean resnet50"):
        build_config_text(inspect_folder(Path("set")), backbone="resnet5")


def test_an_existing_file_is_kept() -> None:
    path = Path("mine.yaml")
    path.write_text("precious", encoding="utf-8")
    with pytest.raises(UsageError, match=r"mine\.yaml exists already"):
        write_config(path, "new")
    assert path.read_text(encoding="utf-8") == "precious"
    link = Path("link.yaml")
    link.symlink_to("nowhere.yaml")
    with pytest.raises(UsageError, match="exists already"):
        write_config(link, "new")
    assert not Path("nowhere.yaml").exists()


def test_no_torch_is_imported() -> None:
    draw("set/a", 2)
    draw("set/b", 2)
    code = """
import sys
import vtrain.runs.starter_config
from pathlib import Path
assert not {"torch", "torchvision", "numpy", "PIL"} & set(sys.modules)
print(vtrain.runs.starter_config.build_config_text(vtrain.runs.starter_config.inspect_folder(Path("set"))).count("resnet18"))
assert not {"torch", "torchvision"} & set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert run.stdout == "1\n"
