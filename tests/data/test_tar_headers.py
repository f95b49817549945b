"""Headers of tars: the members that tarfile sees, and no harm from hostile or damaged ones."""

import io
import random
import tarfile
import time
from pathlib import Path

import pytest

from vtrain.data.tar_headers import BLOCK, Header, TarError, read_headers


def write(path: Path, *members: tuple[str, bytes], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def headers(path: Path) -> list[Header]:
    with path.open("rb") as file:
        return list(read_headers(file))


def error_of(path: Path) -> str:
    with pytest.raises(TarError) as caught:
        headers(path)
    return str(caught.value)


def patch(path: Path, position: int, content: bytes) -> Path:
    """Overwrite a part of the first header, and mend its checksum."""
    data = bytearray(path.read_bytes())
    data[position : position + len(content)] = content
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_members_are_those_that_tarfile_sees(tmp_path: Path, tar_format: int) -> None:
    names = ["a/1.jpg", "b/" + "d" * 90 + "/" + "x" * 60 + ".jpg", "c/empty.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["é/ü.jpg", "l/" + "y" * 300 + ".jpg"]
    members = [(name, bytes([number]) * (700 * number)) for number, name in enumerate(names)]
    path = write(tmp_path / "x.tar", *members, tar_format=tar_format)
    found = headers(path)
    content = path.read_bytes()
    assert [(each.name, each.remark) for each in found] == [(name, None) for name in names]
    with tarfile.open(path) as archive:
        expected = [(info.offset_data, info.size) for info in archive]
    assert [(each.offset, each.size) for each in found] == expected
    for header, (_, data) in zip(found, members, strict=True):
        assert content[header.offset : header.offset + header.size] == data


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in {
            "folder": tarfile.DIRTYPE,
            "hard": tarfile.LNKTYPE,
            "soft": tarfile.SYMTYPE,
            "pipe": tarfile.FIFOTYPE,
            "disk": tarfile.BLKTYPE,
            "odd": b"Z",
        }.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd"
            archive.addfile(info)
        archive.addfile(tarfile.TarInfo("last"))
    found = {each.name: each for each in headers(path)}
    assert found["folder/"].is_folder
    assert found["last"] == Header("last", 7 * BLOCK, 0)
    assert {name: each.remark for name, each in found.items() if each.remark} == {
        "hard": "is a link",
        "soft": "is a link",
        "pipe": "is a named pipe",
        "disk": "is a device",
        "odd": "is of an unknown kind",
    }


@pytest.mark.parametrize("more", [False, True])
def test_files_with_holes_are_passed_over(tmp_path: Path, more: bool) -> None:
    path = write(tmp_path / "x.tar", ("sparse", b"12345"), ("next.jpg", b"678"),
                 tar_format=tarfile.GNU_FORMAT)  # fmt: skip
    patch(path, 156, b"S")
    if more:
        patch(path, 482, b"\1")
        data = path.read_bytes()
        path.write_bytes(data[:BLOCK] + bytes(BLOCK) + data[BLOCK:])
    first, second = headers(path)
    assert first.remark == "is stored with holes"
    assert (second.name, second.size) == ("next.jpg", 3)


def test_holes_in_pax_are_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.jpg")
        info.pax_headers = {"GNU.sparse.major": "1"}
        archive.addfile(info)
    (header,) = headers(tmp_path / "x.tar")
    assert header.remark == "is stored with holes"


def test_every_cut_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", ("a/1.jpg", b"x" * 700), ("a/2.jpg", b"y" * 600))
    whole = path.read_bytes()
    data_ends, between = (BLOCK + 700, 4 * BLOCK + 600), 3 * BLOCK
    for length in (0, 1, 511, 512, 900, data_ends[0] - 1, between + 1, 2500, data_ends[1] - 1):
        path.write_bytes(whole[:length])
        assert ("is cut off" if length else "is an empty file") in error_of(path), length
    for length in (*data_ends, between - 1, between, data_ends[1] + 1):
        path.write_bytes(whole[:length])
        *_, last = headers(path)
        assert last.remark == "has no end mark: it may have been cut off", length


def test_archives_behind_one_another_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", ("a/1.jpg", b"x"))
    path.write_bytes(2 * path.read_bytes())
    first, remark = headers(path)
    assert first.name == "a/1.jpg"
    assert remark.remark == "goes on behind its end mark; that is not used"


@pytest.mark.parametrize(
    ("position", "content", "expected"),
    [
        (124, b"77777777777\0", "is cut off: a member ends at byte"),
        (124, b"\x80" + b"\0" * 3 + b"\x7f" * 8, "is cut off: a member ends at byte"),
        (124, b"\xff" * 12, "no valid size"),
        (124, b"-0000000512\0", "no valid size"),
        (124, b"zzz\0", "no valid size"),
        (156, b"L", None),
        (156, b"x", "bad attributes"),
    ],
)
def test_hostile_sizes_and_kinds(
    tmp_path: Path, position: int, content: bytes, expected: str | None
) -> None:
    path = patch(write(tmp_path / "x.tar", ("a/1.jpg", b"z" * 100)), position, content)
    if expected is None:
        assert headers(path) == []
    else:
        assert expected in error_of(path)


def test_huge_attributes_are_refused_unread(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", ("a/1.jpg", b"z" * (2 << 20)))
    assert "bytes of names and times" in error_of(patch(path, 156, b"x"))


def test_many_attributes_take_no_long_time(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", ("a/1.jpg", b"5 a=\n" * 200_000), ("b", b""))
    patch(path, 156, b"x")
    started = time.perf_counter()
    assert [each.name for each in headers(path)] == ["b"]
    assert time.perf_counter() - started < 5


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(random.Random(0).randbytes(5000))
    assert error_of(path) == "is damaged or no tar file: byte 0 begins no member"


def test_mutated_archives_end(tmp_path: Path) -> None:
    members = [(f"{'n' * (40 * k)}/{k}.jpg", b"x" * 300 * k) for k in range(1, 6)]
    path = write(tmp_path / "x.tar", *members)
    whole, rng = path.read_bytes(), random.Random(1)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(6000)] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            assert len(headers(path)) <= 20
        except TarError:
            refused += 1
    assert refused > 100
