"""Pickles as bytes, with what torch.save never writes in them, and archives around them."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

# A file: what is in it, or what makes it in a folder and gives its content or its path.
Content = bytes | Callable[[Path], bytes | Path]
START, STOP = b"\x80\x02", b"."
_MAGIC = 0x1950A86A20F9469CFC6C


def made_by(make: Callable[[], bytes]) -> Content:
    """A content that is not made before it is needed."""

    def made(folder: Path) -> bytes:
        return make()

    return made


def text(value: str) -> bytes:
    """A string."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """An integer of any size up to 255 bytes."""
    encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(encoded)]) + encoded


def tuple_of(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def table(**items: bytes) -> bytes:
    """A dict."""
    return b"}(" + b"".join(text(key) + item for key, item in items.items()) + b"u"


def call(name: str, *arguments: bytes) -> bytes:
    """What a function gives, named as `module attribute`."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n" + tuple_of(*arguments) + b"R"


def tensor(
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    *,
    offset: int = 0,
    elements: int = 4,
    storage: str = "torch FloatStorage",
    key: bytes | None = None,
    place: str = "cpu",
    more: tuple[bytes, ...] = (),
) -> bytes:
    """A tensor whose storage is the entry `data/0`."""
    stored = tuple_of(
        text("storage"),
        b"c" + storage.replace(" ", "\n").encode() + b"\n",
        text("0") if key is None else key,
        text(place),
        number(elements),
    )
    return call(
        "torch._utils _rebuild_tensor_v2",
        stored + b"Q",
        number(offset),
        tuple_of(*map(number, size)),
        tuple_of(*map(number, stride)),
        b"\x89",
        call("collections OrderedDict"),
        *more,
    )


def whole(value: bytes) -> bytes:
    """A pickle of one value."""
    return START + value + STOP


def archive(
    content: bytes, *, compression: int = zipfile.ZIP_STORED, entries: Mapping[str, bytes] = {}
) -> bytes:
    """A file as torch.save writes it, around a pickle."""
    stream = io.BytesIO()
    parts = {"data.pkl": content, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"}
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, part in {**parts, **entries}.items():
            file.writestr(f"archive/{name}", part)
    return stream.getvalue()


def legacy(content: bytes) -> bytes:
    """A file as torch.save wrote it before it wrote archives."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = b"".join(pickle.dumps(each, 2) for each in (_MAGIC, 1001, system))
    return head + content + pickle.dumps(["0"], 2) + struct.pack("<q", 4) + bytes(16)


def saved(value: Any) -> bytes:
    """What torch.save makes of a value."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


class Gadget:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def gadgets(canary: Path) -> dict[str, Gadget]:
    """Objects that create the file `canary` when they are unpickled, each in another way."""
    import builtins
    import os
    import runpy
    import subprocess

    order = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Gadget(os.system, order),
        "os.popen": Gadget(os.popen, order),
        "subprocess": Gadget(subprocess.call, ["touch", str(canary)]),
        "eval": Gadget(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "exec": Gadget(builtins.exec, code),
        "open": Gadget(builtins.open, str(canary), "w"),
        "mkdir": Gadget(os.mkdir, str(canary)),
        "getattr": Gadget(getattr, Gadget(__import__, "os"), "system"),
        "import": Gadget(__import__, "antigravity"),
        "runpy": Gadget(runpy.run_path, str(canary)),
        "nested pickle": Gadget(pickle.loads, pickle.dumps(Gadget(os.system, order))),
        "torch.load": Gadget(torch.load, str(canary)),
        "torch.save": Gadget(torch.save, 1, str(canary)),
        "torch.hub": Gadget(torch.hub.load_state_dict_from_url, "file:///etc/hosts"),
        "map": Gadget(map, os.system, [order]),
        "type": Gadget(type, "Made", (), {}),
    }
