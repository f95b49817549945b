"""Images that are there more than once: in several splits, which is a leak, or under two labels."""

from collections.abc import Iterable, Iterator, Sequence

from vtrain.data.duplicates import Group
from vtrain.results.check_findings import DataSet, Finding, FoundGroup, build, plural
from vtrain.system.text import one_line

# Where copies are in several splits, those in the first of these stay: what a result is measured on
# is worth more than one image to train on.
KEPT_FIRST = ("test", "val", "train")


def find_duplicates(data: DataSet, groups: Iterable[Group]) -> Iterator[Finding]:
    """Groups of the same images: the worst thing that can be said of each."""
    by_kind: dict[str, list[FoundGroup]] = {}
    for group in groups:
        found = FoundGroup(group.kind, tuple(map(data.describe_image, group.members)))
        by_kind.setdefault(classify(found), []).append(found)
    for kind, text in (
        ("conflicting_labels", "that are the same, or nearly so, are in different classes"),
        ("leaked", "that are the same, or nearly so, are in different splits"),
        ("duplicates", "of one split are there more than once"),
        ("near_duplicates", "of one split are nearly the same"),
    ):
        if kind in by_kind:
            yield _build_grouped(kind, by_kind[kind], text)


def find_similar(data: DataSet, groups: Iterable[Sequence[int]]) -> Iterator[Finding]:
    """Groups of images, by their positions, whose features are alike."""
    found = [FoundGroup("features", tuple(map(data.describe_image, group))) for group in groups]
    if found:
        across = sum(len({each.place for each in group.images}) > 1 for group in found)
        note = f", {across:,} of them across splits or classes"
        yield _build_grouped("similar", found, "look alike to the model", note)


def _build_grouped(kind: str, groups: Sequence[FoundGroup], text: str, note: str = "") -> Finding:
    """A finding of groups; its example are two images of the first, in different places if any."""
    paths = tuple(each.path for group in groups for each in group.images)
    first, *others = groups[0].images
    second = next((each for each in others if each.place != first.place), others[0])
    example = " and ".join(
        one_line(each.path)
        + (f" ({one_line(each.class_)})" if kind == "conflicting_labels" else "")
        for each in (first, second)
    )
    message = (
        f"{len(paths):,} images {text} ({plural(len(groups), 'group')}{note}), such as {example}"
    )
    return build(kind, len(paths), message, paths=paths, groups=tuple(groups))


def classify(group: FoundGroup) -> str:
    """The kind of finding that a group of the same images is."""
    if len({each.class_ for each in group.images}) > 1:
        return "conflicting_labels"
    if len({each.split for each in group.images}) > 1:
        return "leaked"
    return "near_duplicates" if group.same == "near" else "duplicates"


def choose_exclusions(data: DataSet, groups: Iterable[Group]) -> dict[str, list[int]]:
    """Positions of the images of groups to leave out, by the kind of finding.

    All of those under two labels; of leaked ones the copies in the splits that come last in
    `KEPT_FIRST`; of exact duplicates in what stays all but the first.
    """
    chosen: dict[str, list[int]] = {}
    for group in groups:
        images = tuple(map(data.describe_image, group.members))
        kind = classify(FoundGroup(group.kind, images))
        splits = {each.split for each in images}
        kept_split = next((name for name in KEPT_FIRST if name in splits), images[0].split)
        seen: set[int] = set()
        for position, image, same in zip(group.members, images, group.same, strict=True):
            if kind == "conflicting_labels" or image.split != kept_split or same in seen:
                chosen.setdefault(kind, []).append(position)
            else:
                seen.add(same)
    return chosen
