"""Files that are no images for us, and odd names, as people have them."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults.case import NotPossible
from tests.faults.commands import write_model
from tests.faults.door import LEVELS, Door, draw, put_classes, write, write_fit
from tests.helpers.program import Outcome
from vtrain.data.folders import scan_labelled
from vtrain.data.image_names import INSTALLED_EXTRAS

HEIF = 'pip install "vtrain[heif]"'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
LATER_HEIC = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200)
JXL = b"\xff\x0a\x09\x07" + bytes(100)
MOVIE = b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(200)
MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + bytes(200)
PDF = b"%PDF-1.7\n" + bytes(200)
ZIP = b"PK\x03\x04" + bytes(200)
DICOM = bytes(128) + b"DICM" + bytes(200)
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'

# What a file of a class folder is called, what is in it, what it is said to be.
FOREIGN: dict[str, tuple[bytes, str]] = {
    "a.heic": (HEIC, "a HEIC photograph"),
    "b.HEIC": (LATER_HEIC, "a HEIC photograph"),
    "c.heif": (HEIC, "a HEIC photograph"),
    "a.jxl": (JXL, "a JPEG XL image"),
    "b.jxl": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "a JPEG XL image"),
    "a.nef": (b"MM\0*" + bytes(99), "a camera raw photograph"),
    "a.CR2": (b"II*\0\x10\0\0\0CR\x02\0", "a camera raw photograph"),
    "a.cr3": (b"\0\0\0\x18ftypcrx " + bytes(99), "a camera raw photograph"),
    "a.dng": (b"II*\0" + bytes(99), "a camera raw photograph"),
    "a.raf": (b"FUJIFILMCCD-RAW 0201", "a camera raw photograph"),
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "a JPEG 2000 image"),
    "a.j2k": (b"\xff\x4f\xff\x51" + bytes(99), "a JPEG 2000 image"),
    "a.dcm": (DICOM, "a DICOM image"),
    "IM000001": (DICOM, "a DICOM image"),
    "a.mov": (MOVIE, "a video"),
    "b.mov": (b"\0\0\0\x08wide\0\0\0\0mdat", "a video"),
    "a.mp4": (MP4, "a video"),
    "a.avi": (b"RIFF\0\0\0\0AVI LIST", "a video"),
    "a.webm": (b"\x1a\x45\xdf\xa3" + bytes(99), "a video"),
    "a.wmv": (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(99), "a video"),
    "a.mts": (bytes(4) + b"\x47" + bytes(99), "a video"),
    "a.pdf": (PDF, "a PDF document"),
    "a.svg": (SVG, "an SVG drawing"),
    "b.svg": (b"\xef\xbb\xbf\n<SVG>", "an SVG drawing"),
    "a.eps": (b"%!PS-Adobe-3.0", "an EPS drawing"),
    "a.psd": (b"8BPS\0\1", "a Photoshop file"),
    "a.exr": (b"\x76\x2f\x31\x01", "an HDR image"),
    "a.hdr": (b"#?RADIANCE\n", "an HDR image"),
    "a.tga": (b"\0\0\x02" + bytes(99), "a TGA image"),
    "a.ico": (b"\0\0\1\0\1\0", "an icon"),
    "a.zip": (ZIP, "a ZIP archive"),
    "a.rar": (b"Rar!\x1a\x07\1\0", "a RAR archive"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7z archive"),
    # What is inside counts.
    "movie.heic": (MP4, "a video"),
    "still.mov": (HEIC, "a HEIC photograph"),
    "page.jpg_1": (b"<!DOCTYPE html><html>", "a web page"),
    "lfs.jpg?raw": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
}
JUNK: dict[str, bytes] = {
    "notes.txt": b"a",
    "labels.csv": b"a",
    "README": b"read me",
    "LICENSE": b"MIT",
    "0.png.json": b"{}",
    "0.jpg.xmp": b"<x:xmpmeta>",
    "empty.heic": b"",
    "text.mp4": b"this is none",
    "_SUCCESS": b"",
}
ODD_NAMES = (
    "x.jpg?size=large",
    "y.jpg%3Fw=3&h=4",
    "z.jpg!d",
    "a.jpg:large",
    "photo.jpg_1",
    "b.JPG.jpg~",
    "IMG.jpeg.download",
    "wget.jpg.1",
    "copy.png (1)",
    "dot.jpg.",
)


def jpeg(level: int = 60, seed: int = 0) -> bytes:
    """The bytes of an image."""
    stream = io.BytesIO()
    draw(level, seed).save(stream, "JPEG")
    return stream.getvalue()


def with_files(files: Mapping[str, bytes], root: str = "set") -> Callable[[], None]:
    """Two classes of six images each, and more files, by paths below the root."""

    def build() -> None:
        if INSTALLED_EXTRAS:
            raise NotPossible("the extras heif and jxl not to be installed")
        put_classes(root)
        write_fit(f"train: {root}, val_fraction: 0.3")
        write_model(Path(), tuple(LEVELS))
        for name, content in files.items():
            write(Path(root) / name, content)

    return build


def alone(files: Mapping[str, bytes]) -> Callable[[], None]:
    """Nothing but these files and a model."""

    def build() -> None:
        write_model(Path(), tuple(LEVELS))
        for name, content in files.items():
            write(name, content)

    return build


def write_tar(files: Mapping[str, bytes], name: str = "set.tar") -> Callable[[], None]:
    """An archive of two classes of six images each, and more members."""

    def build() -> None:
        images = {f"{n}/{i}.jpg": jpeg(v, i) for n, v in LEVELS.items() for i in range(6)}
        with tarfile.open(name, "w") as archive:
            for member, content in {**images, **files}.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        write_model(Path(), tuple(LEVELS))
        write_fit(f"train: {name}, val_fraction: 0.3")

    return build


def counted(**expected: int) -> Callable[[Path, Outcome], None]:
    """The set has these classes and no others, with so many images."""

    def check(_folder: Path, _outcome: Outcome) -> None:
        source = Path("set") if Path("set").exists() else Path("set.tar")
        images = scan_labelled(source)
        found = dict(zip(images.classes, images.class_counts(), strict=True))
        assert found == expected, f"{found}, expected {expected}"

    return check


def reasons_of_all(_folder: Path, _outcome: Outcome) -> None:
    """Every file of a class folder has the reason that it should have."""
    found = {each.path.name: each.reason for each in scan_labelled(Path("set")).skipped}
    expected = {name: f"is {what} (" for name, (_, what) in FOREIGN.items()}
    expected |= dict.fromkeys(JUNK, "is not named like an image")
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, start in expected.items():
        assert found[name].startswith(start), f"{name} {found[name]}, expected {start}"


def finding_of_heic(_folder: Path, outcome: Outcome) -> None:
    """The finding in the JSON of `check` counts them, apart from junk."""
    findings = {each["kind"]: each for each in json.loads(outcome.out)["findings"]}
    found = findings["unsupported"]
    assert (found["severity"], found["count"], found["classes"]) == ("warning", 5, ["cat"])
    assert HEIF in found["advice"], found
    assert findings["unused_files"]["count"] == 1, findings["unused_files"]


def trained_on(**expected: int) -> Callable[[Path, Outcome], None]:
    """A run of these classes, with so many images in both splits."""

    def check(folder: Path, _outcome: Outcome) -> None:
        (path,) = folder.glob("runs/*/data.json")
        data = json.loads(path.read_text(encoding="utf-8"))
        found = {
            name: sum(data[split]["per_class"][name] for split in ("train", "val"))
            for name in data["classes"]
        }
        assert found == expected, f"{found}, expected {expected}"

    return check


def answered(count: int) -> Callable[[Path, Outcome], None]:
    """There are so many lines of answers."""

    def check(_folder: Path, outcome: Outcome) -> None:
        assert len(outcome.out.splitlines()) == count, outcome.out

    return check


def follow_the_hint(folder: Path, outcome: Outcome) -> None:
    """What the hint says makes class folders of the names."""
    hint = outcome.err.split("make the folders:")[1]
    command = " ".join(hint.split())
    subprocess.run(["bash", "-c", command], check=True, cwd=folder)
    counted(cat=6, dog=6)(folder, outcome)


def put_backslashed() -> None:
    """What unzipping leaves that takes backslashes for letters."""
    write_model(Path(), tuple(LEVELS))
    for name, level in LEVELS.items():
        for number in range(6):
            write(Path("set") / f"{name}\\{number}.jpg", jpeg(level, number))


def put_nameless(suffix: str = "") -> None:
    """Downloads that are called by a hash, a licence among them, and a model."""
    for name, level in LEVELS.items():
        for number in range(6):
            write(f"set/{name}/{number:02}ab34{suffix}", jpeg(level, number))
        write(f"set/{name}/LICENSE", "free")
    write_fit("train: set, val_fraction: 0.3")


def link_nameless() -> None:
    """Class folders of links without suffixes, as caches of downloads have them."""
    for name, level in LEVELS.items():
        for number in range(4):
            blob = write(f"blobs/{name}{number}", jpeg(level, number)).resolve()
            Path(f"set/{name}").mkdir(parents=True, exist_ok=True)
            Path(f"set/{name}/{number}").symlink_to(blob)


def link_system() -> None:
    """A folder of a system, moved elsewhere with a link to it."""
    with_files(SYSTEM)()
    Path("set/lost+found").rename("x")
    Path("set/lost+found").symlink_to("../x")


def raw_with_thumbnail() -> None:
    """A raw photograph, whose thumbnail TIFF readers take for it."""
    write_model(Path(), tuple(LEVELS))
    draw(60).save("photo.tif")
    Path("photo.tif").rename("photo.NEF")


FIVE = {f"cat/p{number}.heic": HEIC for number in range(5)}
PHONE = {**FIVE, **{f"dog/live{n}.mov": MOVIE for n in range(3)}, "dog/IMG.aae": b"<?xml"}
SYSTEM = {
    f"{folder}/{name}": jpeg()
    for folder in (
        "@eaDir", "#recycle", ".thumbnails", "$RECYCLE.BIN", "System Volume Information",
        "lost+found", "__MACOSX", ".ipynb_checkpoints", "cat/@eaDir/1.png", "cat/#recycle",
        "dog/.thumbnails", "@Recycle", "#snapshot", ".Trash-1000", "dog/.AppleDouble",
    )
    for name in ("1.jpg", "sub/2.jpg")
}  # fmt: skip
LITTER = dict.fromkeys(("Thumbs.db", "cat/Thumbs.db", "dog/desktop.ini", "cat/.DS_Store"), b"x")
ARGUMENTS = {
    "clip.mp4": MP4,
    "doc.pdf": PDF,
    "photos.zip": ZIP,
    "photo.heic": HEIC,
    "phone.jpg": HEIC,
    "new.jpg": LATER_HEIC,
    "drawing.svg": SVG,
    "x.jxl": JXL,
    "scan": DICOM,
    "page.jpg": b"\n<!DOCTYPE html>\n<html>",
    "denied.png": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "._a.jpg": b"\0\x05\x16\x07\0\2",
    "packed.jpg": b"\x1f\x8b\x08\0",
    "noise.jpg": b"no image at all",
}
PREDICT = ("predict", "-m", "model.safetensors")

DOORS: tuple[Door, ...] = (
    Door(
        "init: HEIC in a class",
        with_files({**FIVE, "cat/notes.txt": b"a"}),
        [["init", "set"]],
        said=[
            "warning: 5 HEIC photographs are not read (5 of 11 files of class 'cat')",
            HEIF,
            "not used: 1 files",
        ],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "fit: HEIC in a class is a warning of its own",
        with_files({**FIVE, "cat/notes.txt": b"a", "dog/a.json": b"{}"}),
        [["fit", "c.yaml"]],
        said=[
            "warning: data.train: 5 HEIC photographs are not read (5 of 11 files of class 'cat')",
            HEIF,
            "2 files are not used, such as",
        ],
        check=trained_on(cat=6, dog=6),
    ),
    Door(
        "check: HEIC is a finding of its own",
        with_files({**FIVE, "cat/notes.txt": b"a"}),
        [["check", "set", "--json"]],
        check=finding_of_heic,
    ),
    Door(
        "check of a config",
        with_files(FIVE),
        [["check", "c.yaml"]],
        said=["5 HEIC photographs are not read (5 of 11 files of class 'cat')", HEIF],
    ),
    *(
        Door(
            f"{command[0]}: HEIC in a folder",
            with_files(FIVE),
            [[*command, "set"]],
            said=[f"warning: set: 5 HEIC photographs are not read{where}", HEIF],
        )
        for command, where in (
            (("predict", "-m", "model.safetensors"), ", such as set/cat/p0.heic"),
            (("evaluate", "-m", "model.safetensors"), " (5 of 11 files of class 'cat')"),
        )
    ),
    Door(
        "embed: HEIC in a folder",
        with_files(FIVE),
        [["embed", "set", "out.npy", "-m", "model.safetensors"]],
        said=["warning: set: 5 HEIC photographs are not read", HEIF],
    ),
    Door(
        "a phone's folder",
        with_files(PHONE),
        [["init", "set"]],
        said=[
            "5 HEIC photographs are not read (5 of 11 files of class 'cat')",
            "3 videos are not read (3 of 9 files of class 'dog')",
            "extract frames as JPEG",
        ],
    ),
    Door(
        "shares of a class count every format",
        with_files({**FIVE, "cat/a.mov": MOVIE}),
        [["init", "set"]],
        said=["(5 of 12 files of class 'cat')", "(1 of 12 files of class 'cat')"],
    ),
    Door(
        "a class of HEIC alone is never left out",
        with_files({"emu/notes.txt": b"a", "emu/p.heic": HEIC}),
        [["fit", "c.yaml"]],
        code=3,
        said=["'emu'", "p.heic is a HEIC photograph", HEIF],
    ),
    Door(
        "a folder of HEIC alone",
        alone({f"set/{name}/{i}.heic": HEIC for name in LEVELS for i in range(3)}),
        [["init", "set"]],
        code=3,
        said=["6 HEIC photographs are not read", HEIF],
    ),
    Door(
        "predict: a folder of HEIC and junk",
        alone({"set/a.txt": b"a", "set/b.heic": HEIC, "set/c.heic": HEIC}),
        [[*PREDICT, "set"]],
        code=3,
        said=["holds no images; 2 HEIC photographs are not read", HEIF],
    ),
    Door(
        "every format by its first bytes",
        with_files(
            {f"cat/{k}": v for k, (v, _) in FOREIGN.items()}
            | {f"cat/{k}": v for k, v in JUNK.items()}
        ),
        [["init", "set"]],
        said=["videos are not read", "DICOM images are not read", "not used: 9 files"],
        check=reasons_of_all,
    ),
    Door(
        "predict: files that are no images",
        alone(ARGUMENTS),
        [[*PREDICT, *ARGUMENTS]],
        code=3,
        said=[
            "clip.mp4: error: is a video (extract frames as JPEG)",
            "doc.pdf: error: is a PDF document (export its pages as PNG)",
            "photos.zip: error: is a ZIP archive (unpack it)",
            f"photo.heic: error: is a HEIC photograph ({HEIF}",
            "phone.jpg: error: is a HEIC photograph",
            "new.jpg: error: is a HEIC photograph",
            "drawing.svg: error: is an SVG drawing",
            "x.jxl: error: is a JPEG XL image",
            "scan: error: is a DICOM image",
            "page.jpg: error: is a web page (fetch the image itself",
            "denied.png: error: is an XML file",
            "pointer.png: error: is a Git LFS pointer (fetch the images with git lfs pull)",
            "._a.jpg: error: is a macOS metadata file",
            "packed.jpg: error: is a compressed file",
            "noise.jpg: error: is not an image in a supported format",
        ],
    ),
    Door(
        "predict: a raw photograph is not its thumbnail",
        raw_with_thumbnail,
        [[*PREDICT, "photo.NEF"]],
        code=3,
        said=["photo.NEF: error: is a camera raw photograph (develop to JPEG)"],
    ),
    Door(
        "fit: HEIC named .jpg",
        with_files({"cat/phone.jpg": HEIC}),
        [["fit", "c.yaml"]],
        code=3,
        said=["phone.jpg: is a HEIC photograph", HEIF],
    ),
    Door(
        "a listed HEIC",
        with_files({"../list.txt": b"set/cat/0.png\nset/cat/p.heic\n", "cat/p.heic": HEIC}),
        [[*PREDICT, "list.txt"]],
        code=3,
        said=["p.heic: error: is a HEIC photograph"],
    ),
    Door(
        "JPEG named .heic is read",
        with_files({"cat/p.heic": jpeg(), "dog/q.HEIC": jpeg(190)}),
        [["init", "set"]],
        unsaid=["not read", "not used"],
        check=counted(cat=7, dog=7),
    ),
    *(
        Door(
            f"init: {name}",
            alone({name: content}),
            [["init", name]],
            code=3,
            said=[f"{name} is {what}", "expected a folder"],
        )
        for name, content, what in (
            ("photos.zip", ZIP, "a ZIP archive (unpack it)"),
            ("photos.rar", b"Rar!\x1a\x07\0", "a RAR archive (unpack it)"),
            ("clip.mp4", MP4, "a video (extract frames as JPEG)"),
            ("photo.heic", HEIC, "a HEIC photograph"),
        )
    ),
    Door(
        "data.train: an archive",
        with_files({"../photos.zip": ZIP}),
        [["fit", "c.yaml", "data.train=photos.zip"]],
        code=2,
        said=["photos.zip is a ZIP archive (unpack it), expected a folder"],
    ),
    Door(
        "folders of systems are no classes",
        with_files({**SYSTEM, **LITTER}),
        [["init", "set"]],
        unsaid=["not used", "not read", "note: the largest"],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "fit knows no folders of systems",
        with_files(SYSTEM),
        [["fit", "c.yaml"]],
        unsaid=["not used"],
        check=trained_on(cat=6, dog=6),
    ),
    Door(
        "predict enters no folders of systems",
        with_files(SYSTEM),
        [[*PREDICT, "set"]],
        unsaid=["@eaDir", "RECYCLE", "lost+found"],
        check=answered(12),
    ),
    Door(
        "folders of systems in a tar",
        write_tar({f"{name}/x.jpg": jpeg() for name in ("@eaDir", "__MACOSX/cat", "cat/#recycle")}),
        [["check", "set.tar"]],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "a link to a folder of a system",
        link_system,
        [["init", "set"]],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "classes that only sound like it",
        with_files(
            {f"{n}/{i}.jpg": jpeg(9, i) for n in ("recycle", "thumbnails") for i in range(3)}
        ),
        [["init", "set"]],
        check=counted(cat=6, dog=6, recycle=3, thumbnails=3),
    ),
    Door(
        "odd names are read, and it is said",
        with_files({f"dog/{name}": jpeg(190, k) for k, name in enumerate(ODD_NAMES)}),
        [["fit", "c.yaml"]],
        said=["read for what is in them, not for their names: 10 files such as"],
        unsaid=["not used"],
        check=trained_on(cat=6, dog=16),
    ),
    Door(
        "what only goes with an image is none",
        with_files({"cat/0.png.json": b"{}", "cat/0.png.txt": b"a", "cat/0.png_meta": b"a=b"}),
        [["init", "set"]],
        said=["not used: 3 files"],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "backups are not read twice",
        with_files({f"cat/0.png{end}": jpeg() for end in ("~", ".bak", "_original", ".orig")}),
        [["init", "set"]],
        said=["not used: 4 files"],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "hashes without a suffix are read",
        put_nameless,
        [["fit", "c.yaml"]],
        said=["read for what is in them, not for their names: 12 files such as"],
        check=trained_on(cat=6, dog=6),
    ),
    Door(
        "names that end in a number",
        lambda: put_nameless("_2024.05"),
        [["init", "set"]],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "images without a suffix beside others are told",
        with_files({f"cat/{k}ab": jpeg(60, k) for k in range(4)}),
        [["init", "set"]],
        said=[
            "4 images without a suffix, beside images that have one, are not read "
            "(4 of 10 files of class 'cat')",
            "give it one, such as .jpg",
        ],
        check=counted(cat=6, dog=6),
    ),
    Door(
        "backslashes beside class folders",
        with_files({"cat\\7.jpg": jpeg()}),
        [["fit", "c.yaml"]],
        code=3,
        said=["1 file in set such as cat\\7.jpg has backslashes in the name"],
    ),
    Door("links without a suffix", link_nameless, [["init", "set"]], check=counted(cat=4, dog=4)),
    Door(
        "predict: a flat folder of hashes",
        alone({f"set/{k}ab": jpeg(60, k) for k in range(4)}),
        [[*PREDICT, "set"]],
        check=answered(4),
    ),
    Door(
        "further suffixes of formats that are read",
        with_files({"cat/a.jpe": jpeg(), "cat/b.JPE": jpeg(60, 2), "dog/a.pnm": b"P6 1 1 255 abc"}),
        [["init", "set"]],
        unsaid=["not used"],
        check=counted(cat=8, dog=7),
    ),
    Door(
        "odd names and hashes in a tar",
        write_tar({"emu/9a": jpeg(120, 1), "emu/9b": jpeg(120, 2), "cat/x.jpg?w=1": jpeg(60, 9)}),
        [["fit", "c.yaml"]],
        said=["read for what is in them, not for their names: 3 files such as"],
        check=trained_on(cat=7, dog=6, emu=2),
    ),
    Door(
        "HEIC in a tar",
        write_tar({"cat/p.heic": HEIC, "cat/q.heic": HEIC, "cat/a.txt": b"a"}),
        [["fit", "c.yaml"]],
        said=["2 HEIC photographs are not read (2 of 8 files of class 'cat')", HEIF],
        check=trained_on(cat=6, dog=6),
    ),
    Door(
        "a class of HEIC alone in a tar",
        write_tar({"emu/p.heic": HEIC}),
        [["fit", "c.yaml"]],
        code=3,
        said=["'emu'", "is a HEIC photograph", HEIF],
    ),
    Door(
        "backslashes from careless unzipping",
        put_backslashed,
        [["init", "set"]],
        code=3,
        said=["12 files in set such as cat\\0.jpg have backslashes in the name", "unzip"],
        check=follow_the_hint,
    ),
    Door(
        "backslashes in a tar",
        write_tar({f"{name}\\7.jpg": jpeg(v, 7) for name, v in LEVELS.items()}),
        [["fit", "c.yaml"]],
        said=["2 files are not used", "has backslashes in its name, where an archive had folders"],
        check=trained_on(cat=6, dog=6),
    ),
    Door(
        "predict takes names with backslashes",
        put_backslashed,
        [[*PREDICT, "set"]],
        check=answered(12),
    ),
)
