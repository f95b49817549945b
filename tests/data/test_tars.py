"""Images in tars: scanned, labelled, read and checked like those in folders."""

import io
import os
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.data.test_tar_headers import write
from tests.helpers.tiny import draw_image
from vtrain.config.keys import DataConfig
from vtrain.config.preprocessing import Preprocessing
from vtrain.data import kept_scans, tars
from vtrain.data.file_pool import map_images
from vtrain.data.folders import is_source, scan_images, scan_labelled
from vtrain.data.image_sets import LabelledImages
from vtrain.data.images import check_image, read_image
from vtrain.data.loaders import build_eval_loader
from vtrain.data.splits import check_splits, describe_splits, scan_splits
from vtrain.data.tars import find_status
from vtrain.data.transforms import EvalTransform
from vtrain.errors import DataError, ImageError
from vtrain.system.terminal import Console

NAMES = ("ant/1.jpg", "ant/2.jpg", "ant/deep/3.jpg", "bee/1.jpg", "bee/2.jpg")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_scans, "CLOCK_TICK_NS", 0)
    monkeypatch.setattr(tars, "MIN_ENTRIES", 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "scans"


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (seed * 20 % 256, 90, 10)).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path: str, *names: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    members = [(name, picture(number)) for number, name in enumerate(names)]
    return write(Path(path), *members)


def names(images: LabelledImages) -> list[tuple[str, str]]:
    return [
        (images.classes[label], os.fsdecode(place))
        for place, label in zip(images.paths.encoded_names(), images.labels, strict=True)
    ]


def notes(images: LabelledImages) -> dict[str, str]:
    return {str(each.path): each.reason for each in images.skipped}


def test_members_in_class_folders() -> None:
    pack("x.tar", "./bee/1.jpg", "./ant/2.jpg", "./ant/deep/1.jpg", "stray.jpg", "ant/notes.txt",
         "ant/._2.jpg", "__MACOSX/ant/1.jpg")  # fmt: skip
    images = scan_labelled(Path("x.tar"))
    assert images.classes == ("ant", "bee")
    assert names(images) == [
        ("ant", "ant/2.jpg"),
        ("ant", "ant/deep/1.jpg"),
        ("bee", "bee/1.jpg"),
    ]
    assert list(images.paths) == [Path("x.tar", name) for _, name in names(images)]
    assert notes(images) == {
        "x.tar/ant/notes.txt": "is not named like an image",
        "x.tar/stray.jpg": "lies outside the class folders",
    }


def test_a_folder_of_shards() -> None:
    pack("set/b.tar", "ant/1.jpg", "bee/2.jpg")
    pack("set/a.TAR", "ant/1.jpg", "cow/9.jpg")
    Path("set/README.md").touch()
    images = scan_labelled(Path("set"))
    assert names(images) == [
        ("ant", "a.TAR/ant/1.jpg"),
        ("ant", "b.tar/ant/1.jpg"),
        ("bee", "b.tar/bee/2.jpg"),
        ("cow", "a.TAR/cow/9.jpg"),
    ]
    assert notes(images) == {"set/README.md": "is not named like an image"}
    paths, _ = scan_images(Path("set"))
    assert paths == sorted(images.paths)
    assert all(is_source(Path(each)) for each in ("set", "set/b.tar", "list.csv"))


def test_a_tar_beside_class_folders_is_not_used() -> None:
    pack("set/more.tar", "cow/1.jpg")
    for file in ("set/ant/1.jpg", "set/bee/1.jpg"):
        draw_image(Path(file))
    images = scan_labelled(Path("set"))
    assert images.classes == ("ant", "bee")
    assert notes(images) == {"set/more.tar": "is not named like an image"}


def pairs(path: str, **labels: str) -> Path:
    members = []
    for name, label in labels.items():
        members += [(f"{name}.jpg", picture(1)), (f"{name}.json", b"{}")]
        members += [(f"{name}.cls", label.encode())] if label else []
    return write(Path(path), *members)


def test_pairs_of_image_and_class() -> None:
    pairs("x.tar", a1="daisy\n", a2="cafe\u0301", a3="daisy", a4="")
    images = scan_labelled(Path("x.tar"))
    assert names(images) == [
        ("caf\u00e9", "a2.jpg"),
        ("daisy", "a1.jpg"),
        ("daisy", "a3.jpg"),
    ]
    assert notes(images) == {"x.tar/a4.jpg": "has no .cls member that names its class"}


def test_pairs_with_numbers() -> None:
    pairs("x.tar", a="10", b="2", c="2", d="0")
    images = scan_labelled(Path("x.tar"))
    assert images.classes == ("0", "2", "10")
    assert images.labels == (0, 1, 1, 2)
    pairs("val.tar", a="2")
    assert names(scan_labelled(Path("val.tar"), classes=images.classes)) == [("2", "a.jpg")]
    # A model's own classes have names: then the numbers count them.
    known = [f"class {number}" for number in range(11)]
    numbered = scan_labelled(Path("x.tar"), classes=known)
    assert numbered.labels == (0, 2, 2, 10)
    with pytest.raises(DataError, match="classes that training does not have: '10'"):
        scan_labelled(Path("x.tar"), classes=known[:3])


def test_hostile_members_are_skipped_and_told() -> None:
    with tarfile.open("x.tar", "w") as archive:
        for name in ("ant/1.jpg", "bee/1.jpg", "/etc/1.jpg", "ant/../../2.jpg", "ant/a\nb.jpg"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("ant/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        again = tarfile.TarInfo("ant/1.jpg")
        content = picture(5)
        again.size = len(content)
        archive.addfile(again, io.BytesIO(content))
    images = scan_labelled(Path("x.tar"))
    assert names(images) == [("ant", "ant/1.jpg"), ("bee", "bee/1.jpg")]
    assert notes(images) == {
        "x.tar/etc/1.jpg": "has an absolute name",
        "x.tar/ant/../../2.jpg": "has a name that leads out of the archive",
        "x.tar/ant/a\\nb.jpg": "has control characters in its name",
        "x.tar/ant/link.jpg": "is a link",
        "x.tar/ant/1.jpg": "is replaced by a later member of the same name",
    }
    assert read_image("x.tar/ant/1.jpg").size == (40, 30)
    with pytest.raises(ImageError, match="is an empty file"):
        read_image("x.tar/bee/1.jpg")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "set/x.tar.zst", "x.tar"])
def test_compressed_archives_say_what_to_do(name: str) -> None:
    Path("set").mkdir()
    with tarfile.open(name, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("ant/1.jpg"))
    source = Path("set" if name.startswith("set") else name)
    for scan in (scan_labelled, scan_images):
        with pytest.raises(DataError, match="is compressed") as caught:
            scan(source)
        assert "unpack it, or write a plain .tar" in (caught.value.hint or "")


def test_damaged_archives_are_errors() -> None:
    path = pack("set/x.tar", *NAMES)
    pack("set/y.tar", *NAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"set/x\.tar is cut off"):
        scan_labelled(Path("set"))
    path.write_bytes(b"not a tar" * 1000)
    with pytest.raises(DataError, match="is damaged or no tar file"):
        scan_labelled(path)
    with pytest.raises(DataError, match="there is no folder"):
        scan_labelled(Path("none.tar"))


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (("ant/1.jpg", "ant/2.jpg"), "x.tar has one class only, 'ant'"),
        (("1.jpg", "2.jpg"), "no images in x.tar"),
        ((), "no images in x.tar"),
    ],
)
def test_archives_without_classes(members: tuple[str, ...], expected: str) -> None:
    pack("x.tar", *members)
    with pytest.raises(DataError, match=expected) as caught:
        scan_labelled(Path("x.tar"))
    assert "members named <class>/<image>" in (caught.value.hint or "")


def test_members_are_read_like_files() -> None:
    path = pack("set/x.tar", *NAMES)
    with tarfile.open(path) as archive:
        archive.extractall("plain", filter="data")
    for name in NAMES:
        member, file = path / name, Path("plain", name)
        assert read_image(member).tobytes() == read_image(file).tobytes()
        check_image(str(member))
        assert find_status(member).st_size == find_status(file).st_size == file.stat().st_size
    starts = {find_status(path / name).offset for name in NAMES}
    assert len(starts) == len(NAMES)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x.tar/ant/9.jpg", "does not exist"),
        ("x.tar/ant", "does not exist"),
        ("gone.tar/ant/1.jpg", "does not exist"),
        ("file.jpg/ant/1.jpg", "cannot be read"),
        ("bad.tar/ant/1.jpg", "cannot be read"),
    ],
)
def test_members_that_are_not_there(path: str, reason: str) -> None:
    pack("x.tar", *NAMES)
    draw_image(Path("file.jpg"))
    Path("bad.tar").write_bytes(b"x" * 1024)
    for use in (read_image, check_image):
        with pytest.raises(ImageError, match=reason):
            use(path)


def test_members_too_large_are_refused_unread() -> None:
    with tarfile.open("x.tar", "w") as archive:
        info = tarfile.TarInfo("ant/1.jpg")
        archive.addfile(info)
    size = 10**12
    content = bytearray(Path("x.tar").read_bytes())
    content[124:136] = b"\x80" + size.to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    Path("x.tar").write_bytes(content)
    os.truncate("x.tar", size + 10_240)  # holes take no space
    with pytest.raises(ImageError, match="has 1,000,000 MB, more than the 512 MB allowed"):
        read_image("x.tar/ant/1.jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_and_checks_reach_members(workers: int) -> None:
    path = pack("set/x.tar", *NAMES)
    with path.open("r+b") as file:
        file.seek(find_status(path / NAMES[1]).offset)
        file.write(bytes(20))
    images = scan_labelled(Path("set"))
    reasons = map_images(check_image, images.paths, workers=workers)
    assert [isinstance(reason, str) for reason in reasons] == [False, True, False, False, False]
    transform = EvalTransform(Preprocessing(resize=16, crop=16))
    loader = build_eval_loader(
        images.paths, images.labels, transform, batch_size=8, workers=workers
    )
    (batch,) = loader
    assert batch.labels.tolist() == [0, 0, 1, 1]
    assert [position for position, _ in batch.failures] == [1]


def test_a_split_is_what_it_is_in_a_folder() -> None:
    path = pack("set.tar", *NAMES)
    with tarfile.open(path) as archive:
        archive.extractall("set", filter="data")
    facts = []
    for train in ("set", "set.tar"):
        config = DataConfig(train=train, val_fraction=0.4, workers=0)
        console = Console(quiet=True)
        splits = scan_splits(config, seed=3, reporter=console)
        checked = check_splits(splits, config, reporter=console)
        described = describe_splits(checked)
        facts.append([described[name]["sha256"] for name in ("train", "val")])
    assert facts[0] == facts[1]


def test_an_index_is_kept_and_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pairs("x.tar", a="ant", b="bee")
    time.sleep(0.02)
    expected = scan_labelled(path)
    (kept,) = cache.iterdir()
    tars._load_index.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(tars, "_build_index", None)  # would fail if it were called
        assert scan_labelled(path) == expected
        assert read_image("x.tar/a.jpg").size == (40, 30)
    before = kept.read_bytes()
    for content in (before[:-1], b"", before.replace(b"vtrain", b"ztrain")):
        tars._load_index.cache_clear()
        kept.write_bytes(content)
        assert scan_labelled(path) == expected
        assert kept.read_bytes() == before


def test_a_replaced_archive_is_indexed_again() -> None:
    path = pack("x.tar", "ant/1.jpg", "bee/1.jpg")
    scan_labelled(path)
    pack("x.tar", "cow/with a longer name.jpg", "bee/1.jpg", "dog/7.jpg")
    assert scan_labelled(path).classes == ("bee", "cow", "dog")
    dog = read_image("x.tar/dog/7.jpg").getpixel((0, 0))
    assert isinstance(dog, tuple)
    assert dog[0] > 35  # the third picture, not the first
