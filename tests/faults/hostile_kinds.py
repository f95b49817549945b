"""Lying archives, files of other programs, files cut off, and paths that are no files."""

import gzip
import io
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.case import NotPossible
from tests.faults.made_files import build_state, checkpoint_bytes, model_bytes
from tests.faults.pickles import Content, archive, made_by, saved, table, tensor, whole

GOOD = whole(table(w=tensor()))


def archives() -> Iterator[tuple[str, Content]]:
    """Archives that would grow when they are read, or say different things in different places."""
    for name, make in ARCHIVES.items():
        yield name, made_by(make)


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return stream.getvalue()


def patched(content: bytes, marker: bytes, offset: int, value: bytes) -> bytes:
    """The content with `value` at `offset` behind the last `marker`."""
    at = content.rindex(marker) + offset
    return content[:at] + value + content[at + len(value) :]


def twice() -> bytes:
    """The same entry twice, written by hand: the one checked may not be the one read."""
    first, second = archive(GOOD), archive(whole(table(w=tensor((9,)))))
    return first + second


ENTRY, END = b"PK\x01\x02", b"PK\x05\x06"
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "of 64 MB in 64 kB": lambda: archive(
        GOOD, compression=zipfile.ZIP_DEFLATED, entries={"zeros": bytes(1 << 26)}
    ),
    "compressed by bzip2": lambda: archive(GOOD, compression=zipfile.ZIP_BZIP2),
    "compressed by lzma": lambda: archive(GOOD, compression=zipfile.ZIP_LZMA),
    "that lies about a size": lambda: patched(archive(GOOD), ENTRY, 24, b"\xff\xff\xff\x7f"),
    "that lies about both sizes": lambda: patched(
        archive(GOOD), ENTRY, 20, b"\xff\xff\xff\x7f" * 2
    ),
    "with sizes of 64 bits left out": lambda: patched(archive(GOOD), ENTRY, 20, b"\xff" * 8),
    "with overlapping entries": lambda: patched(archive(GOOD), ENTRY, 42, bytes(4)),
    "with an entry beyond the end": lambda: patched(archive(GOOD), ENTRY, 42, b"\xff\xff\xff\x7f"),
    "marked as encrypted": lambda: patched(archive(GOOD), ENTRY, 8, b"\1\0"),
    "of an unknown method": lambda: patched(archive(GOOD), ENTRY, 10, b"\x63\0"),
    "with a wrong checksum": lambda: patched(archive(GOOD), ENTRY, 16, b"\1\2\3\4"),
    "with a name of 65535 letters": lambda: patched(archive(GOOD), ENTRY, 28, b"\xff\xff"),
    "with a directory beyond the end": lambda: patched(archive(GOOD), END, 16, b"\xff\xff\xff\x7f"),
    "with a directory of 2 GB": lambda: patched(archive(GOOD), END, 12, b"\xff\xff\xff\x7f"),
    "of 65535 entries, it says": lambda: patched(archive(GOOD), END, 8, b"\xff" * 4),
    "on several disks": lambda: patched(archive(GOOD), END, 4, b"\1\0\1\0"),
    "with a comment": lambda: patched(archive(GOOD), END, 20, b"\4\0") + b"hey!",
    "with half a comment": lambda: patched(archive(GOOD), END, 20, b"\xff\xff"),
    "behind another": twice,
    "behind junk": lambda: b"PK\3\4" + bytes(5000) + archive(GOOD),
    "before junk": lambda: archive(GOOD) + b"junk" * 100,
    "without a pickle": lambda: zipped({"archive/version": b"3\n"}),
    "without entries": lambda: zipped({}),
    "with nothing in the pickle": lambda: archive(b""),
    "without a folder": lambda: zipped({"data.pkl": GOOD, "version": b"3\n"}),
    "with absolute names": lambda: zipped({"/etc/data.pkl": GOOD, "/etc/version": b"3\n"}),
    "with names that go up": lambda: archive(GOOD, entries={"../../../canary": b"x"}),
    "with 20,000 entries": lambda: archive(
        GOOD, entries={f"data/x{n}": b"" for n in range(20_000)}
    ),
    "with an odd byte order": lambda: archive(GOOD, entries={"byteorder": b"middle"}),
    "of TorchScript": lambda: archive(
        GOOD, entries={"constants.pkl": whole(b")"), "code/x.py": b""}
    ),
    "of a document": lambda: zipped({"word/document.xml": b"<w/>", "[Content_Types].xml": b"<x/>"}),
}


def foreign_contents() -> Iterator[tuple[str, Content]]:
    """What lies there by mistake."""
    for name, make in FOREIGN.items():
        yield name, made_by(make)


def image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, kind)
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(99.0))
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, w=np.arange(99.0))
    return stream.getvalue()


def tape() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name in ("storages", "tensors", "pickle"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    return stream.getvalue()


FOREIGN: dict[str, Callable[[], bytes]] = {
    "web page": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "empty file": bytes,
    "Git LFS pointer": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    ),
    "one byte": lambda: b"\x80",
    "zeros": lambda: bytes(100_000),
    "JPEG": lambda: image("JPEG"),
    "PNG": lambda: image("PNG"),
    "tar": tape,
    "gzip": lambda: gzip.compress(model_bytes()),
    "ONNX": lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x80\x01\n\x10main_graph",
    "array": array,
    "arrays": arrays,
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(500),
    "GGUF": lambda: b"GGUF\3\0\0\0" + bytes(500),
    "JSON": lambda: b'{"state_dict": {"w": [1, 2, 3]}}',
    "YAML": lambda: b"model: {backbone: resnet50}\n",
    "CSV": lambda: b"a,b\n1,2\n" * 99,
    "PDF": lambda: b"%PDF-1.7\n" + bytes(100),
    "program": lambda: b"\x7fELF\2\1\1" + bytes(500),
    "script": lambda: b"#!/bin/sh\ntouch canary\n",
    "all ones": lambda: b"\xff" * 100_000,
    "noise": lambda: np.random.default_rng(0).bytes(100_000),
    "text of UTF-16": lambda: "state_dict".encode("utf-16") * 99,
    "pickled array": lambda: saved({"w": np.arange(3.0)}),
    "pickled set": lambda: saved({1, 2, 3}),
    "pickled list": lambda: saved([1, 2, 3]),
    "pickled number": lambda: saved(7),
    "weights of nothing": lambda: saved({}),
    "weights of another model": lambda: saved(
        {name: each[:1].clone() for name, each in build_state(1).items() if each.ndim}
    ),
    "weights without a layer": lambda: saved(dict(list(build_state(1).items())[1:])),
    "lone carriage return": lambda: b"\r",
}


def truncations() -> Iterator[tuple[str, Content]]:
    """Files of every kind that end too soon."""
    contents: dict[str, Callable[[], bytes]] = {
        "checkpoint": checkpoint_bytes,
        "model": model_bytes,
        "weights": good_weights,
    }
    for name, content in contents.items():
        whole_one = content()
        places = [1, 4, 7, 8, 9, 30, 100, 1000, len(whole_one) // 2, -1000, -100, -22, -2, -1]
        suffix = ".safetensors" if name == "model" else ".pth"
        for place in places:
            yield f"{name} at {place}", make_file(f"cut{suffix}", whole_one[:place])


def good_weights() -> bytes:
    return saved(build_state(1))


def make_file(name: str, content: bytes) -> Content:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def odd_paths() -> Iterator[tuple[str, Content]]:
    """Paths that are no files, or none that can be read."""
    for suffix in (".pth", ".safetensors"):
        for name, make in PATHS.items():
            yield f"{name}{suffix}", partial(make_path, make, f"file{suffix}")


def make_path(make: Callable[[Path], Path], name: str, folder: Path) -> Path:
    return make(folder / name)


def linked_to(target: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        if target.startswith("/dev") and not Path(target).exists():
            raise NotPossible(f"needs {target}")
        path.symlink_to(target)
        return path

    return make


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make_socket(path: Path) -> Path:
    here = socket.socket(socket.AF_UNIX)
    own = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have 107 bytes only
    try:
        here.bind(path.name)
    finally:
        os.chdir(own)
        here.close()
    return path


def make_closed(path: Path) -> Path:
    path.write_bytes(model_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        raise NotPossible("this user may read every file")
    return path


PATHS: dict[str, Callable[[Path], Path]] = {
    "folder": make_folder,
    "pipe": make_pipe,
    "socket": make_socket,
    "link to a device without end": linked_to("/dev/zero"),
    "link to a full device": linked_to("/dev/full"),
    "link to nothing": linked_to("nowhere/at/all"),
    "link to itself": lambda path: linked_to(path.name)(path),
    "closed file": make_closed,
    "name with a null byte": lambda path: path.with_name("a\0b" + path.suffix),
    "name with a line end": lambda path: path.with_name("a\nb" + path.suffix),
    "name of 5,000 letters": lambda path: path.with_name("n" * 5000 + path.suffix),
    "below a file": lambda path: path.parent / "made" / path.name,
}
