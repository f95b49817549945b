"""Finds images that are there more than once: the same bytes, the same pixels, or nearly so.

Near duplicates are sought in two steps. Candidates agree in most bits of a difference hash (64
bits: is each of 8 × 8 places brighter than its left neighbour), also of the other image's mirror
image and of what is left of it when its edges are cut off. A candidate counts if the two gray
thumbnails are correlated strongly enough, once one is cut to fit the other.

The first step sorts the hashes by 16 of their bits, so many times with other bits, and compares
each only with the few behind it that agree in all of those: O(N log N) for N images, in numpy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Hashes: TypeAlias = NDArray[np.uint64]
Thumbs: TypeAlias = NDArray[np.uint8]  # [N, E, E] gray
Rows: TypeAlias = NDArray[np.int64]  # [P, 3]: an image, another, the variant of the other
Kind = Literal["bytes", "pixels", "near"]

# All measured on photographs of flowers, and of hand signs on white ground, which are the harder:
# the most alike of two million pairs of those correlate to 0.957 as they are, 0.973 when cut to
# fit. Copies that were scaled or compressed again correlate above 0.99.
MIN_CORRELATION = 0.965
MIN_CUT_CORRELATION = 0.975
# Of squeezenet's features less their mean: the most alike of different flowers have 0.93, of
# different hand signs 0.92; half of the copies that were cut, mirrored or turned by 2° are above.
MIN_COSINE = 0.94
_BLOCK = 1_024  # images that are compared with all others at once
_WORTH_CUTTING = 0.86  # correlation from which on a cut is sought that makes it higher
_MAX_BITS = 8  # bits in which the hashes of a candidate may differ
_MIN_CONTRAST = 4.0  # standard deviation in gray levels; below, images are all alike
_CUTS = (0.0, 0.04, 0.08)  # shares of the thumbnail cut off at every edge before it is hashed
_VARIANTS = 2 * len(_CUTS)  # each cut, as it is and mirrored
_SORTS = 24
_SORT_BITS = 16
_NEIGHBOURS = 48
_PIECE = 16_384  # pairs that are compared at once
_CUT_PIECE = 512
# Cuts in hundredths of the edge, by which a thumbnail is made to fit another.
_CUT_STEPS = (4, 2, 1, 1)
_MAX_CUT = 12

_COUNTS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are one and the same: positions in order, and how much alike they are.

    `kind` is that of the whole group; `same[i]` numbers the images of equal bytes or pixels.
    """

    members: tuple[int, ...]
    kind: Kind
    same: tuple[int, ...]


def find_near_pairs(thumbs: Thumbs) -> NDArray[np.intp]:
    """Pairs `[P, 2]` of positions, each once and in order, of nearly the same images.

    Of many images that are the same, pairs that connect them all, not all their pairs.
    """
    contrast = [each.std(axis=(1, 2)) for each in _pieces(thumbs)]
    usable = np.flatnonzero(np.concatenate([*contrast, []]) >= _MIN_CONTRAST)
    if len(usable) < 2:
        return np.empty((0, 2), np.intp)
    matches: set[tuple[int, int]] = set()
    seen = np.empty(0, np.int64)
    roots = np.arange(len(thumbs))
    for codes in _find_candidates(thumbs, usable):
        new = np.setdiff1d(codes, seen, assume_unique=True)
        seen = np.concatenate([seen, new])
        before = len(matches)
        for some in _split(new, _PIECE):
            pairs, variants = np.divmod(some, _VARIANTS)
            rows = np.stack([*np.divmod(pairs, len(thumbs)), variants], axis=1)
            apart = roots[rows[:, 0]] != roots[rows[:, 1]]
            found = _match(thumbs, rows[apart])
            matches.update((min(pair), max(pair)) for pair in found)
        if len(matches) > before:
            roots = np.array(_join(len(thumbs), list(matches)))
    return np.array(sorted(matches), np.intp).reshape(-1, 2)


def _match(thumbs: Thumbs, candidates: Rows) -> Iterator[tuple[int, int]]:
    """The pairs that are alike as they are, or once the second is cut to fit the first."""
    correlations = _correlate(thumbs, candidates)
    high = correlations >= MIN_CORRELATION
    yield from map(tuple, candidates[high, :2].tolist())
    near = candidates[~high & (correlations >= _WORTH_CUTTING)]
    # Of two whole images either may be the one that was cut.
    turned = near[near[:, 2] < 2][:, [1, 0, 2]]
    for some in _split(np.concatenate([near, turned]), _CUT_PIECE):
        ours, theirs = _load_pairs(thumbs, some)
        fits = _fit_cut(_normalise(ours), theirs, some[:, 2] // 2) >= MIN_CUT_CORRELATION
        yield from map(tuple, some[fits, :2].tolist())


def hash_thumbs(thumbs: Thumbs, *, cut: float = 0.0, mirrored: bool = False) -> Hashes:
    """Difference hashes `[N]` of thumbnails `[N, E, E]`, `cut` being left out at every edge."""
    edge = thumbs.shape[1]
    rows, columns = _box_matrix(8, edge, cut), _box_matrix(9, edge, cut)
    hashes = [np.empty(0, np.uint64)]
    for piece in _pieces(thumbs):
        cells = rows @ piece @ columns.T
        if mirrored:
            cells = cells[:, :, ::-1]
        bits = cells[:, :, 1:] > cells[:, :, :-1]
        hashes.append(_pack_bits(bits.reshape(len(bits), 64)))
    return np.concatenate(hashes)


def _pieces(thumbs: Thumbs) -> Iterator[Floats]:
    """Thumbnails as numbers, some thousand at a time."""
    for start in range(0, len(thumbs), _PIECE):
        yield thumbs[start : start + _PIECE].astype(np.float32)


@cache
def _box_matrix(cells: int, edge: int, before: float, after: float | None = None) -> Floats:
    """`[cells, edge]`: means over equal parts of an axis, shares of which are cut off its ends."""
    end = before if after is None else after
    limits = np.linspace(before * edge, (1 - end) * edge, cells + 1)
    places = np.arange(edge)
    overlap = np.minimum(limits[1:, None], places + 1) - np.maximum(limits[:-1, None], places)
    weights = overlap.clip(min=0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _find_candidates(thumbs: Thumbs, usable: NDArray[np.intp]) -> Iterator[NDArray[np.int64]]:
    """Codes `[P]` of an image, another, and the variant of the other that is like the first."""
    chosen = thumbs[usable]
    # Six hashes of each image: as it is and mirrored, whole and cut. Variant 0 is it as it is.
    made = [
        hash_thumbs(chosen, cut=cut, mirrored=mirrored)
        for cut in _CUTS
        for mirrored in (False, True)
    ]
    all_hashes, all_images = np.concatenate(made), np.tile(usable, len(made))
    all_variants = np.repeat(np.arange(len(made), dtype=np.uint8), len(usable))
    random = np.random.default_rng(0)
    for _ in range(_SORTS):
        hashes = _permute_bits(all_hashes, random.permutation(64))
        order = np.argsort(hashes)
        hashes, images, variants = hashes[order], all_images[order], all_variants[order]
        keys = hashes >> np.uint64(64 - _SORT_BITS)
        found = [np.empty(0, np.int64)]
        for offset in range(1, min(_NEIGHBOURS, len(hashes) - 1) + 1):
            first = np.flatnonzero(keys[:-offset] == keys[offset:])
            if not len(first):
                break
            second = first + offset
            near = _count_bits(hashes[first] ^ hashes[second]) <= _MAX_BITS
            near &= images[first] != images[second]
            near &= (variants[first] == 0) | (variants[second] == 0)
            first, second = first[near], second[near]
            swapped = variants[first] != 0
            first, second = np.where(swapped, second, first), np.where(swapped, first, second)
            pairs = images[first].astype(np.int64) * len(thumbs) + images[second]
            found.append(pairs * _VARIANTS + variants[second])
        yield np.unique(np.concatenate(found))


def _permute_bits(hashes: Hashes, order: NDArray[np.intp]) -> Hashes:
    permuted = np.empty_like(hashes)
    for start in range(0, len(hashes), _PIECE):
        piece = hashes[start : start + _PIECE].astype(">u8")
        bits = np.unpackbits(piece.view(np.uint8).reshape(-1, 8), axis=1)[:, order]
        permuted[start : start + _PIECE] = _pack_bits(bits)
    return permuted


def _pack_bits(bits: NDArray[Any]) -> Hashes:
    """Bits `[N, 64]` as numbers, the first bit being the highest."""
    packed = np.ascontiguousarray(np.packbits(bits, axis=1))
    return packed.view(">u8")[:, 0].astype(np.uint64)


def _count_bits(values: Hashes) -> NDArray[np.uint8]:
    words = np.ascontiguousarray(values).view(np.uint16).reshape(-1, 4)
    return np.asarray(_COUNTS[words].sum(axis=1, dtype=np.uint8))


def _correlate(thumbs: Thumbs, pairs: Rows) -> Floats:
    """Correlations `[P]` of the thumbnails of pairs, the second as its variant says."""
    edge = thumbs.shape[1]
    ours, theirs = _load_pairs(thumbs, pairs)
    for number, cut in enumerate(_CUTS):
        of_cut = pairs[:, 2] // 2 == number
        if cut and of_cut.any():
            matrix = _box_matrix(edge, edge, cut)
            theirs[of_cut] = matrix @ theirs[of_cut] @ matrix.T
    return np.asarray((_normalise(ours) * _normalise(theirs)).sum(axis=1))


def _load_pairs(thumbs: Thumbs, pairs: Rows) -> tuple[Floats, Floats]:
    ours, theirs = thumbs[pairs[:, 0]].astype(np.float32), thumbs[pairs[:, 1]].astype(np.float32)
    mirrored = pairs[:, 2] % 2 == 1
    theirs[mirrored] = theirs[mirrored][:, :, ::-1]
    return ours, theirs


def _normalise(thumbs: Floats) -> Floats:
    """`[P, E * E]`, each with mean 0 and length 1."""
    flat = thumbs.reshape(len(thumbs), math.prod(thumbs.shape[1:]))
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True).clip(min=1e-6))


def _fit_cut(ours: Floats, theirs: Floats, variants: NDArray[np.int64]) -> Floats:
    """The highest correlations `[P]` that are found by moving each of four edges in turn."""
    edge = theirs.shape[1]
    matrices = _cut_matrices(edge)

    def score(cuts: NDArray[np.int64]) -> Floats:
        rows, columns = matrices[cuts[:, 0], cuts[:, 1]], matrices[cuts[:, 2], cuts[:, 3]]
        seen = _normalise(np.matmul(rows @ theirs, columns.swapaxes(1, 2)).astype(np.float32))
        return np.asarray((ours * seen).sum(axis=1))

    start = np.array([round(100 * cut) for cut in _CUTS])[variants]
    best_cuts = np.repeat(start[:, None], 4, axis=1)
    best = score(best_cuts)
    for step in _CUT_STEPS:
        for side in range(4):
            for change in (-step, step):
                cuts = best_cuts.copy()
                cuts[:, side] = (cuts[:, side] + change).clip(0, _MAX_CUT)
                scores = score(cuts)
                better = scores > best
                best, best_cuts[better] = np.where(better, scores, best), cuts[better]
    return best


@cache
def _cut_matrices(edge: int) -> Floats:
    """`[before, after, edge, edge]`: means when so many hundredths are cut off the ends."""
    shares = [cut / 100 for cut in range(_MAX_CUT + 1)]
    return np.stack([np.stack([_box_matrix(edge, edge, a, b) for b in shares]) for a in shares])


def _split(rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def group_images(
    digests: NDArray[np.void],
    thumbs: Thumbs,
    sizes: NDArray[np.uint32],
    *,
    hash_pixels: Callable[[Sequence[int]], Sequence[bytes | None]],
) -> list[Group]:
    """Groups of two or more images that are the same, or nearly so, by their first member.

    Args:
        digests: of the bytes of N files.
        thumbs: `[N, E, E]`.
        sizes: `[N, 2]`, width and height in pixels.
        hash_pixels: hashes of the pixels of the images at some positions; asked only about those
            that have equal thumbnails and sizes, and other bytes.
    """
    _, firsts, same = np.unique(digests, return_index=True, return_inverse=True)
    first_of = firsts[same.reshape(-1)]  # the first image with the same bytes
    alone = np.sort(firsts)
    pixels = _match_pixels(alone, thumbs, sizes, hash_pixels)
    equal = np.array([pixels.get(first, first) for first in first_of.tolist()], np.intp)
    distinct = np.unique(equal)
    near = distinct[find_near_pairs(thumbs[distinct])]
    pairs = np.concatenate([np.stack([np.arange(len(equal)), equal], axis=1), near])
    groups = []
    for members in join_pairs(len(digests), pairs):
        first_equal = tuple(equal[list(members)].tolist())
        kind: Kind = "near"
        if len(set(first_equal)) == 1:
            kind = "bytes" if len({int(first_of[each]) for each in members}) == 1 else "pixels"
        groups.append(Group(members, kind, first_equal))
    return groups


def _match_pixels(
    positions: NDArray[np.intp],
    thumbs: Thumbs,
    sizes: NDArray[np.uint32],
    hash_pixels: Callable[[Sequence[int]], Sequence[bytes | None]],
) -> dict[int, int]:
    """Each of some images that has the pixels of an earlier one: that earlier one."""
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for position in positions.tolist():
        alike.setdefault((thumbs[position].tobytes(), sizes[position].tobytes()), []).append(
            position
        )
    asked = [each for group in alike.values() if len(group) > 1 for each in group]
    earlier: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for position, digest in zip(asked, hash_pixels(asked) if asked else (), strict=True):
        if digest is not None:
            found[position] = earlier.setdefault(digest, position)
    return found


def find_similar_pairs(features: Floats) -> NDArray[np.intp]:
    """Pairs `[P, 2]` of rows of features `[N, D]` whose difference from the mean points one way.

    All pairs are compared, in blocks: N² D multiplications, some seconds for 10,000 images.
    """
    unit = features
    if len(features):
        unit = features - features.mean(axis=0)
        unit = np.asarray(unit / np.linalg.norm(unit, axis=1, keepdims=True).clip(min=1e-6))
    found = [np.empty((0, 2), np.intp)]
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK]
        rows, columns = np.nonzero(block @ unit[start:].T >= MIN_COSINE)
        later = columns > rows
        found.append(np.stack([rows[later], columns[later]], axis=1) + start)
    return np.concatenate(found)


def join_pairs(count: int, pairs: NDArray[np.intp]) -> list[tuple[int, ...]]:
    """Groups of two or more of `count` positions that pairs connect, by their first member."""
    members: dict[int, list[int]] = {}
    for position, root in enumerate(_join(count, list(map(tuple, pairs.tolist())))):
        members.setdefault(root, []).append(position)
    return [tuple(each) for each in members.values() if len(each) > 1]


def _join(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """For each of `count` positions the first one that pairs connect it with."""
    roots = list(range(count))

    def find(position: int) -> int:
        while roots[position] != position:
            roots[position] = roots[roots[position]]
            position = roots[position]
        return position

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        roots[high] = low
    return [find(position) for position in range(count)]
