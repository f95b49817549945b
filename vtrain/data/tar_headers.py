"""Headers of plain tar files (ustar, GNU and POSIX pax), read with suspicion.

Of an archive that may come from anywhere only names, sizes and places are wanted: nothing is
unpacked, no header can make reading go backwards, and none can ask for much memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
# A name of PATH_MAX takes 4 KB; other records beside it (times, owners, attributes) are small.
MAX_EXTENSION_BYTES = 1 << 20
_LOOKED_AT_BEHIND_END = 1 << 16
_REGULAR, _FOLDER = b"0\x007", b"5"
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL, _SPARSE = b"L", b"K", b"xX", b"g", b"S"
_EXTENSIONS = _LONG_NAME + _LONG_LINK + _PAX + _PAX_GLOBAL
_WITHOUT_DATA = b"123456"  # whatever the field of their size says
_REMARKS = {
    b"1": "is a link",
    b"2": "is a link",
    b"3": "is a device",
    b"4": "is a device",
    b"6": "is a named pipe",
    _SPARSE: "is stored with holes",
}


class TarError(Exception):
    """The archive cannot be read to its end; the message goes behind its name."""


@dataclass(frozen=True, slots=True)
class Header:
    """One member: `size` bytes from `offset` on, or a `remark` why it is none that can be read."""

    name: str
    offset: int
    size: int
    is_folder: bool = False
    remark: str | None = None


@dataclass(slots=True)
class _Extension:
    """What extension headers say about the member behind them."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


def read_headers(file: BinaryIO) -> Iterator[Header]:
    """The members of an archive in the order of the file; remarks on the archive have no name.

    Raises:
        TarError: the archive is damaged or cut off.
    """
    end = os.fstat(file.fileno()).st_size
    position, extension = 0, _Extension()
    if not end:
        raise TarError("is an empty file")
    while position < end:
        block = _read(file, position, BLOCK)
        if not block.strip(b"\0"):
            if _read_some(file, position, _LOOKED_AT_BEHIND_END).strip(b"\0"):
                yield Header("", 0, 0, remark="goes on behind its end mark; that is not used")
            return
        kind = block[156:157]
        size, data = _read_size(block, position), position + BLOCK
        if kind in _EXTENSIONS:
            _require_within(data, size, end)
            _extend(extension, kind, file, data, size)
        else:
            more = kind == _SPARSE and block[482]
            while more:  # a list of holes lies before the data
                more = _read(file, data, BLOCK)[504]
                data += BLOCK
            header = _describe(block, kind, data, size, extension)
            size, extension = header.size, _Extension()
            _require_within(data, size, end)
            yield header
        position = data + -(-size // BLOCK) * BLOCK
    yield Header("", 0, 0, remark="has no end mark: it may have been cut off")


def _read(file: BinaryIO, position: int, size: int) -> bytes:
    content = _read_some(file, position, size)
    if len(content) < size:
        raise TarError(f"is cut off after {position + len(content):,} bytes")
    return content


def _read_some(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _require_within(data: int, size: int, end: int) -> None:
    if data + size > end:
        raise TarError(f"is cut off: a member ends at byte {data + size:,}, the file at {end:,}")


def _read_size(block: bytes, position: int) -> int:
    """The size of the data behind a header whose checksum is right."""
    found = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _parse_number(block[148:156]) != found:
        raise TarError(f"is damaged or no tar file: byte {position:,} begins no member")
    size = _parse_number(block[124:136])
    if size is None:
        raise TarError(f"is damaged: the member at byte {position:,} has no valid size")
    return size


def _parse_number(text: bytes) -> int | None:
    """Octal digits, or GNU's binary numbers, of which negative ones are refused."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.partition(b"\0")[0].strip()
    try:
        number = int(digits or b"0", 8)
    except ValueError:
        return None
    return number if number >= 0 else None


def _extend(extension: _Extension, kind: bytes, file: BinaryIO, data: int, size: int) -> None:
    if size > MAX_EXTENSION_BYTES:
        raise TarError(f"is damaged: {size:,} bytes of names and times at byte {data:,}")
    content = _read(file, data, size)
    if kind == _LONG_NAME:
        extension.name = content.partition(b"\0")[0]
    elif kind in _PAX:
        for key, value in _parse_pax(content, data):
            if key == b"path":
                extension.name = value
            elif key == b"size":
                extension.size = _parse_decimal(value, data)
            elif key.startswith(b"GNU.sparse."):
                extension.sparse = True


def _parse_pax(content: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Records of the form `length key=value`, each with a line end."""
    start, stop = 0, len(content.rstrip(b"\0"))
    while start < stop:
        space = content.find(b" ", start, stop)
        end = start + _parse_decimal(content[start:space], position)
        key, equals, value = content[space + 1 : end].partition(b"=")
        if not value.endswith(b"\n") or not space < end <= stop or not equals:
            raise TarError(f"is damaged: bad attributes at byte {position:,}")
        yield key, value[:-1]
        start = end


def _parse_decimal(text: bytes, position: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"is damaged: bad attributes at byte {position:,}")
    return int(text)


def _describe(block: bytes, kind: bytes, data: int, size: int, extension: _Extension) -> Header:
    name = extension.name
    if name is None:
        name = block[:100].partition(b"\0")[0]
        if block[257:263] == b"ustar\0":  # GNU's own format has other things in this place
            prefix = block[345:500].partition(b"\0")[0]
            name = b"/".join(filter(None, (prefix, name)))
    if extension.size is not None:
        size = extension.size
    remark = _REMARKS.get(kind)
    is_folder = kind == _FOLDER or (kind in _REGULAR and name.endswith(b"/"))
    if extension.sparse:
        remark = _REMARKS[_SPARSE]
    elif remark is None and not is_folder and kind not in _REGULAR:
        remark = "is of an unknown kind"
    if kind in _WITHOUT_DATA:
        size = 0
    return Header(os.fsdecode(name), data, size, is_folder, remark)
