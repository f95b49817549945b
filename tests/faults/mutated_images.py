"""Images with random damage: read or refused, in time, in silence, and twice the same."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.random import Generator

from tests.faults.case import Case, NotPossible
from tests.faults.child import Died, try_in_child
from tests.faults.image_commands import silence_required
from tests.faults.image_kinds import KINDS, Reads, can_be_made
from tests.helpers.pictures import PNG_START
from vtrain.data.images import check_image, read_image
from vtrain.errors import ImageError

GROUP = 25
GROUPS, SHORT_GROUPS = 80, 6
MAX_BYTES = 20_000  # of an image that is mutated: small ones are hit where it hurts
SECONDS = 10.0  # for all readings of one image
MEMORY = 3_000_000_000
# Where formats keep what decoders rely on, behind what tells them apart.
HEADER = slice(8, 72)
EXTREMES = (b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A damaged image and how it was made."""

    name: str
    content: bytes


def find_span(random: Generator, content: bytes, longest: int) -> slice:
    """A part of some content that is not empty, with at most so many bytes."""
    length = int(random.integers(1, max(2, min(longest, len(content)))))
    start = int(random.integers(0, max(1, len(content) - length)))
    return slice(start, start + length)


def replace(content: bytes, part: slice, other: bytes) -> bytes:
    return content[: part.start] + other + content[part.stop :]


def flip_bits(random: Generator, content: bytes, _: bytes) -> bytes:
    damaged = bytearray(content)
    for place in random.integers(0, len(content), random.integers(1, 5)):
        damaged[place] ^= 1 << random.integers(8)
    return bytes(damaged)


def flip_header_bits(random: Generator, content: bytes, other: bytes) -> bytes:
    return replace(content, HEADER, flip_bits(random, content[HEADER] or b"\0", other))


def change_bytes(random: Generator, content: bytes, _: bytes) -> bytes:
    damaged = bytearray(content)
    for place in random.integers(0, len(content), random.integers(1, 9)):
        damaged[place] = random.integers(256)
    return bytes(damaged)


def change_header(random: Generator, content: bytes, other: bytes) -> bytes:
    return replace(content, HEADER, change_bytes(random, content[HEADER] or b"\0", other))


def delete(random: Generator, content: bytes, _: bytes) -> bytes:
    return replace(content, find_span(random, content, 400), b"")


def duplicate(random: Generator, content: bytes, _: bytes) -> bytes:
    part = find_span(random, content, 400)
    return replace(content, part, content[part] * int(random.integers(2, 20)))


def insert(random: Generator, content: bytes, _: bytes) -> bytes:
    place = int(random.integers(0, len(content)))
    return replace(content, slice(place, place), random.bytes(int(random.integers(1, 200))))


def move(random: Generator, content: bytes, _: bytes) -> bytes:
    """A part ends up in another place, as when blocks of a disk are mixed up."""
    part = find_span(random, content, 400)
    place = int(random.integers(0, len(content)))
    return replace(content, slice(place, place + part.stop - part.start), content[part])


def truncate(random: Generator, content: bytes, _: bytes) -> bytes:
    return content[: random.integers(1, max(2, len(content)))]


def set_extreme(random: Generator, content: bytes, _: bytes) -> bytes:
    """What may be a length, a count or an offset becomes the least or most it can be."""
    extreme = EXTREMES[int(random.integers(len(EXTREMES)))]
    place = int(
        random.integers(*((HEADER.start, HEADER.stop) if random.integers(2) else (0, len(content))))
    )
    return replace(content, slice(place, place + len(extreme)), extreme)


def clear(random: Generator, content: bytes, _: bytes) -> bytes:
    part = find_span(random, content, 600)
    return replace(content, part, bytes(part.stop - part.start))


def splice(random: Generator, content: bytes, other: bytes) -> bytes:
    """The beginning of one file and the end of another one."""
    return (
        content[: random.integers(1, max(2, len(content)))]
        + other[random.integers(0, len(other)) :]
    )


def embed_other(random: Generator, content: bytes, other: bytes) -> bytes:
    place = int(random.integers(0, len(content)))
    return replace(content, slice(place, place + len(other)), other)


MUTATIONS: tuple[Callable[[Generator, bytes, bytes], bytes], ...] = (
    flip_bits,
    flip_header_bits,
    change_bytes,
    change_header,
    delete,
    duplicate,
    insert,
    move,
    truncate,
    set_extreme,
    clear,
    splice,
    embed_other,
)


def mend_checksums(content: bytes) -> bytes:
    """The same PNG with checksums that fit, or else nothing behind them would be looked at."""
    if not content.startswith(PNG_START):
        return content
    mended, place = bytearray(content), len(PNG_START)
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        mended[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(mended)


@cache
def originals() -> Sequence[tuple[str, bytes]]:
    """Small images of every format and mode, each of another kind."""
    kinds = [
        kind
        for kind in KINDS
        if isinstance(kind.expected, Reads) and not kind.slow and not kind.file
    ]
    made = [(kind.name, kind.build()) for kind in kinds if can_be_made(kind.name)]
    return [(name, content) for name, content in made if len(content) <= MAX_BYTES]


def mutate(seed: int) -> Mutant:
    """The damaged image of a number, always the same one."""
    random = np.random.default_rng(seed)
    images = originals()
    name, content = images[seed % len(images)]
    steps = []
    for _ in range(random.integers(1, 4)):
        mutation = MUTATIONS[int(random.integers(len(MUTATIONS)))]
        content = mutation(random, content, images[int(random.integers(len(images)))][1]) or b"\0"
        steps.append(mutation.__name__)
    if random.integers(2):
        content = mend_checksums(content)
    return Mutant(f"seed {seed}, {name}: {', '.join(steps)}", content)


def try_group(numbers: range, folder: Path) -> None:
    """All images of a group."""
    if not Path("/proc/self/statm").exists():
        raise NotPossible("limits of memory as Linux has them")
    mutants = [mutate(number) for number in numbers]
    work = partial(judge, folder=folder)
    found = try_in_child(mutants, work, seconds=SECONDS, more_bytes=MEMORY)
    wrong = [
        f"{mutant.name}: {each.how if isinstance(each, Died) else each}"
        for mutant, each in zip(mutants, found, strict=True)
        if each is not None
    ]
    assert not wrong, "; ".join(wrong)


def judge(mutant: Mutant, *, folder: Path) -> str | None:
    """What is wrong with how an image is read."""
    path = folder / "image"
    path.write_bytes(mutant.content)
    try:
        with silence_required():
            return compare(path)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def compare(path: Path) -> str | None:
    """What is wrong with what is read and refused."""
    first, again = read(path), read(path)
    if first != again:
        return f"read twice: {describe(first)}, then {describe(again)}"
    whole = first if isinstance(first, str) else None
    try:
        check_image(path)
        checked = None
    except ImageError as error:
        checked = error.message
    reduced = read(path, min_edge=2)
    other = reduced if isinstance(reduced, str) else None
    if not whole == checked == other:
        return f"read: {whole}, checked: {checked}, reduced: {other}"
    return None


def read(path: Path, *, min_edge: int | None = None) -> bytes | str:
    """Mode, size and pixels, or a reason."""
    try:
        image = read_image(path, min_edge=min_edge)
    except ImageError as error:
        return error.message
    assert image.mode == "RGB", image.mode
    return repr(image.size).encode() + image.tobytes()


def describe(found: bytes | str) -> str:
    return found if isinstance(found, str) else f"an image of {found[:20]!r}"


def cases(full: bool) -> Iterator[Case]:
    """Groups of images, numbered as their seeds are."""
    for group in range(GROUPS if full else SHORT_GROUPS):
        numbers = range(GROUP * group, GROUP * (group + 1))
        name = f"mutated images {numbers.start} to {numbers.stop - 1}"
        yield Case(name, partial(try_group, numbers))
