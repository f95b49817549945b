"""Files that are no images for vtrain, told by their first bytes, and odd names of files that are.

The table says what a format is called and what to do about it. Its reasons stand in the lists of
files that are not used, so that the formats among those can be counted later.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from vtrain.data.image_names import (
    IMAGE_SUFFIXES,
    INSTALLED_EXTRAS,
    NOT_AN_IMAGE,
    compose,
    describe_error,
    is_image_name,
)
from vtrain.data.image_sets import SkippedFile
from vtrain.system.text import one_line

HEAD_BYTES = 132  # DICOM names itself behind 128

Start = tuple[int, bytes]  # an offset, and what stands there


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file that vtrain does not read.

    One of `starts` tells it, whatever the file is called; one of `weak_starts` only together with
    one of `suffixes`. Files with these suffixes are looked into by scans. `extra` is what would
    read it.
    """

    noun: str
    plural: str
    advice: str
    starts: tuple[Start, ...] = ()
    suffixes: tuple[str, ...] = ()
    weak_starts: tuple[Start, ...] = ()
    extra: str | None = None

    @property
    def reason(self) -> str:
        """Why a file of this format is not used, to go behind its name."""
        return f"is {self.noun} ({self.advice})"

    @property
    def readable(self) -> bool:
        """Whether the extra that reads it is installed."""
        return self.extra in INSTALLED_EXTRAS

    def matches(self, head: bytes, suffix: str) -> bool:
        """Whether a file with these first bytes and this suffix, in lower case, is one."""
        starts = self.starts + self.weak_starts if suffix in self.suffixes else self.starts
        return any(head.startswith(start, offset) for offset, start in starts)


def _brands(*names: bytes) -> tuple[Start, ...]:
    return tuple((4, b"ftyp" + name) for name in names)


def _suffixes(names: str) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names.split())


_TIFF_STARTS: tuple[Start, ...] = ((0, b"II*\0"), (0, b"MM\0*"))
_TO_JPEG = "convert to JPEG or PNG"
HEIC = Format(
    "a HEIC photograph",
    "HEIC photographs",
    'pip install "vtrain[heif]" to read it, or convert to JPEG',
    _brands(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1")
    + _brands(b"msf1"),
    (".heic", ".heif", ".hif", ".heics", ".heifs"),
    extra="heif",
)
JPEG_XL = Format(
    "a JPEG XL image",
    "JPEG XL images",
    'pip install "vtrain[jxl]" to read it, or convert to JPEG',
    ((0, b"\xff\x0a"), (0, b"\0\0\0\x0cJXL \r\n\x87\n")),
    (".jxl",),
    extra="jxl",
)
RAW = Format(
    "a camera raw photograph",
    "camera raw photographs",
    "develop to JPEG",
    (
        *_brands(b"crx "),
        (8, b"CR\x02\0"),
        (6, b"HEAPCCDR"),
        (0, b"FUJIFILMCCD-RAW"),
        (0, b"IIRO"),
        (0, b"IIRS"),
        (0, b"MMOR"),
        (0, b"IIU\0"),
        (0, b"FOVb"),
        (0, b"\0MRM"),
    ),
    _suffixes(
        "cr2 cr3 crw nef nrw arw srf sr2 dng raf orf rw2 rwl pef srw x3f 3fr "
        "iiq kdc dcr mrw erf mef mos"
    ),
    weak_starts=_TIFF_STARTS,
)
# A format with a start that is also the start of another one comes first.
FORMATS = (
    HEIC,
    JPEG_XL,
    RAW,
    Format(
        "a JPEG 2000 image",
        "JPEG 2000 images",
        _TO_JPEG,
        ((0, b"\0\0\0\x0cjP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")),
        (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm"),
    ),
    Format("a JPEG XR image", "JPEG XR images", _TO_JPEG, ((0, b"II\xbc"),), (".jxr", ".wdp")),
    Format(
        "a DICOM image",
        "DICOM images",
        "convert to PNG",
        ((128, b"DICM"),),
        (".dcm", ".dicom"),
        ((0, b"\x08\0"),),
    ),
    Format(
        "a video",
        "videos",
        "extract frames as JPEG",
        (
            (4, b"ftyp"),
            (4, b"moov"),
            (4, b"mdat"),
            (8, b"AVI "),
            (0, b"\x1a\x45\xdf\xa3"),
            (0, b"FLV\x01"),
            (0, b"\0\0\x01\xba"),
            (0, b"\0\0\x01\xb3"),
            (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
        ),
        _suffixes("mp4 m4v mov qt avi mkv webm mpg mpeg wmv flv 3gp mts m2ts ogv"),
        ((4, b"wide"), (4, b"free"), (4, b"skip"), (0, b"\x47"), (4, b"\x47"), (0, b"OggS")),
    ),
    Format(
        "a PDF document", "PDF documents", "export its pages as PNG", ((0, b"%PDF-"),), (".pdf",)
    ),
    Format(
        "an SVG drawing",
        "SVG drawings",
        "render as PNG",
        ((0, b"<svg"),),
        (".svg", ".svgz"),
        ((0, b"<?xml"), (0, b"<!"), (0, b"\x1f\x8b")),
    ),
    Format(
        "an EPS drawing",
        "EPS drawings",
        "render as PNG",
        ((0, b"%!PS"), (0, b"\xc5\xd0\xd3\xc6")),
        (".eps", ".ps", ".ai"),
    ),
    Format("a Photoshop file", "Photoshop files", _TO_JPEG, ((0, b"8BPS"),), (".psd", ".psb")),
    Format("a GIMP file", "GIMP files", _TO_JPEG, ((0, b"gimp xcf"),), (".xcf",)),
    Format(
        "an HDR image",
        "HDR images",
        _TO_JPEG,
        ((0, b"\x76\x2f\x31\x01"), (0, b"#?RADIANCE"), (0, b"#?RGBE"), (0, b"PF\n"), (0, b"Pf\n")),
        (".exr", ".hdr", ".pfm"),
    ),
    Format("a DDS texture", "DDS textures", _TO_JPEG, ((0, b"DDS "),), (".dds",)),
    Format(
        "a TGA image",
        "TGA images",
        _TO_JPEG,
        suffixes=(".tga",),
        weak_starts=tuple((1, bytes((m, k))) for m in (0, 1) for k in (1, 2, 3, 9, 10, 11)),
    ),
    Format(
        "a FITS image", "FITS images", "convert to PNG", ((0, b"SIMPLE  ="),), (".fits", ".fit")
    ),
    Format("an icon", "icons", _TO_JPEG, ((0, b"icns"),), (".ico", ".icns"), ((0, b"\0\0\x01\0"),)),
    Format("a ZIP archive", "ZIP archives", "unpack it", ((0, b"PK\x03\x04"),), (".zip",)),
    Format("a RAR archive", "RAR archives", "unpack it", ((0, b"Rar!\x1a\x07"),), (".rar",)),
    Format("a 7z archive", "7z archives", "unpack it", ((0, b"7z\xbc\xaf\x27\x1c"),), (".7z",)),
    Format(
        "a compressed file",
        "compressed files",
        "unpack it",
        ((0, b"\x1f\x8b"), (0, b"BZh"), (0, b"\xfd7zXZ\0"), (0, b"\x28\xb5\x2f\xfd")),
    ),
    Format("a Parquet file", "Parquet files", "write its images as files", ((0, b"PAR1"),)),
    Format(
        "a web page",
        "web pages",
        "fetch the image itself: its download failed",
        ((0, b"<!doctype html"), (0, b"<html")),
    ),
    Format(
        "an XML file", "XML files", "fetch the image itself: its download failed", ((0, b"<?xml"),)
    ),
    Format(
        "a Git LFS pointer",
        "Git LFS pointers",
        "fetch the images with git lfs pull",
        ((0, b"version https://git-lfs"),),
    ),
    Format(
        "a macOS metadata file",
        "macOS metadata files",
        "take the file without ._ in its name",
        ((0, b"\0\x05\x16\x07"),),
    ),
)
NAMELESS = Format(
    "an image without a suffix beside images that have one",
    "images without a suffix, beside images that have one,",
    "give it one, such as .jpg",
)
BY_REASON = {each.reason: each for each in (*FORMATS, NAMELESS)}
_SUFFIXES = frozenset(suffix for each in FORMATS for suffix in each.suffixes)
# `x.jpg?size=large`, `x.jpg!d`, `x.jpg_1`, `x.jpg.download`, `x.jpg (1)`
_ODD_NAME = re.compile(rf"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})(?![a-z0-9])", re.I)
_BACKUP_ENDS = ("~", ".bak", ".orig", ".old", ".save", "_original", "_backup")
_BACKUP = "is named like a backup of an image beside it"
_IMAGE_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP|GIF8|BM.{4}\0\0\0\0|II[*+]\0|MM\0[*+]|P[1-6]\s",
    re.DOTALL,
)
_CLASSES_NAMED = 3


def identify(head: bytes, suffix: str = "") -> Format | None:
    """The format of a file by its first bytes (`HEAD_BYTES`) and its suffix in lower case."""
    if _is_avif(head):
        return None
    text = head.lstrip(b"\xef\xbb\xbf\r\n\t ").lower()
    return next((f for f in FORMATS if f.matches(head, suffix) or f.matches(text, suffix)), None)


def _is_avif(head: bytes) -> bool:
    """Whether AVIF is among the brands of a file, the first of which may be a general one."""
    return head[4:8] == b"ftyp" and b"avi" in head[8 : min(int.from_bytes(head[:4], "big"), 132)]


def is_looked_into(name: str) -> bool:
    """Whether the bytes of a file that is not named like an image decide what it is."""
    return _suffix_of(name) in _SUFFIXES or _is_bare(name) or _ODD_NAME.search(name) is not None


def describe_file(path: Path) -> str | None:
    """What a file that is no image is, with what to do; None if it is of no known format."""
    try:
        found = identify(read_head(str(path)), path.suffix.lower()) if path.is_file() else None
    except OSError:
        return None
    return found.reason if found is not None else None


def judge(
    name: str, siblings: Container[str], read_head: Callable[[], bytes], *, alone: bool
) -> str | None:
    """Why a file that is not named like an image is not used; None if it is an image after all.

    Args:
        name: without its folder.
        siblings: names of images in its folder.
        read_head: its first `HEAD_BYTES` bytes; they are read only if they matter.
        alone: whether no file in its folder is named like an image.
    """
    if not is_looked_into(name):
        return NOT_AN_IMAGE
    odd = _ODD_NAME.search(name)
    if odd and name[odd.end() :].lower().startswith(_BACKUP_ENDS) and name[: odd.end()] in siblings:
        return _BACKUP
    try:
        head = read_head()
    except OSError as error:
        return describe_error(error)
    found = identify(head, _suffix_of(name))
    if found is not None:
        return None if found.readable else found.reason
    if not _IMAGE_STARTS.match(head) and not _is_avif(head):
        return NOT_AN_IMAGE
    return NAMELESS.reason if _is_bare(name) and not odd and not alone else None


def is_picture(path: str) -> bool:
    """Whether a file is an image by its name, or by its bytes, though perhaps none that is read."""
    name = path.rpartition("/")[2]
    if is_image_name(name):
        return True
    reason = judge(name, (), partial(read_head, path), alone=True)
    return reason in (None, HEIC.reason, JPEG_XL.reason, RAW.reason)


def _suffix_of(name: str) -> str:
    stem, dot, end = name.rpartition(".")
    return f".{end.lower()}" if stem and dot else ""


def _is_bare(name: str) -> bool:
    """Whether a name has no suffix; the number of a version or a date is none."""
    suffix = _suffix_of(name)
    return not suffix or suffix[1:].isdigit()


def read_head(path: str) -> bytes:
    """The first bytes of a regular file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # one of possibly many
        return file.read(HEAD_BYTES)


def split_foreign(skipped: Iterable[SkippedFile]) -> tuple[list[SkippedFile], list[SkippedFile]]:
    """Files of known formats that are not read, and what else is not used."""
    skipped = list(skipped)
    foreign = [each for each in skipped if each.reason in BY_REASON]
    return foreign, [each for each in skipped if each.reason not in BY_REASON]


def group_foreign(skipped: Iterable[SkippedFile]) -> dict[str, list[SkippedFile]]:
    """Files of known formats that are not read, by their reasons, the most frequent first."""
    groups: dict[str, list[SkippedFile]] = {}
    for each in skipped:
        if each.reason in BY_REASON:
            groups.setdefault(each.reason, []).append(each)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def describe_unread(
    skipped: Iterable[SkippedFile], root: Path, read: Mapping[str, int] | None = None
) -> Iterator[str]:
    """One sentence for each format that is not read, with what to do.

    Args:
        skipped: files that are not used; those of no known format do not count.
        root: where they come from.
        read: images of each class that are read, where there are classes.
    """
    groups = group_foreign(skipped)
    totals = count_files(chain.from_iterable(groups.values()), root, read or {})
    for reason, files in groups.items():
        text = describe_group(reason, files, root, totals)
        yield f"{text}: {BY_REASON[reason].advice}"


def count_files(
    foreign: Iterable[SkippedFile], root: Path, read: Mapping[str, int]
) -> Counter[str]:
    """Files of each class: images that are read, and files of formats that are not."""
    return Counter(read) + find_classes(foreign, root, read)


def describe_group(
    reason: str, files: Sequence[SkippedFile], root: Path, totals: Mapping[str, int]
) -> str:
    """How many files of one format, and of which classes, are not read.

    Args:
        reason: why they are not.
        files: they, at least one.
        root: where they come from.
        totals: as `count_files` gives them.
    """
    found = BY_REASON[reason]
    noun = found.noun.partition(" ")[2]
    what = f"1 {noun} is" if len(files) == 1 else f"{len(files):,} {found.plural} are"
    where = _describe_places(find_classes(files, root, totals), totals)
    such = "" if len(files) == 1 else "such as "
    return f"{what} not read{where}, {such}{one_line(files[0].path)}"


def find_classes(files: Iterable[SkippedFile], root: Path, classes: Container[str]) -> Counter[str]:
    """How many of the files lie in the folder of which class."""
    counts: Counter[str] = Counter()
    for each in files:
        parts = each.path.parts[len(root.parts) : -1]
        counts.update([part for part in map(compose, parts) if part in classes][:1])
    return counts


def _describe_places(counts: Counter[str], totals: Mapping[str, int]) -> str:
    worst = sorted(counts, key=lambda name: -counts[name] / totals[name])
    named = [
        f"{counts[name]:,} of {totals[name]:,} files of class '{one_line(name)}'"
        for name in worst[:_CLASSES_NAMED]
    ]
    if len(worst) > _CLASSES_NAMED:
        named.append(f"some of {len(worst) - _CLASSES_NAMED} more classes")
    return f" ({', '.join(named)})" if named else ""
