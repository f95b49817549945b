"""Walks through folders: each visited once, links after real folders, what is known not read."""

import os
import stat
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vtrain.data.formats import judge, read_head
from vtrain.data.image_names import (
    HIDDEN_PREFIXES,
    NOT_AN_IMAGE,
    SYSTEM_NAMES,
    describe_error,
    is_hidden,
    is_image_name,
)
from vtrain.data.image_sets import SkippedFile, join_prefix
from vtrain.data.kept_scans import FolderMemory, Listing
from vtrain.errors import DataError


@dataclass(frozen=True, slots=True)
class FolderEntries:
    """What one folder holds, links followed: subfolders as (name, whether it is a link)."""

    images: Sequence[str]
    folders: Sequence[tuple[str, bool]]


@dataclass(slots=True)
class FolderScan:
    """One walk: which folders were visited (by device and inode), what was not used and why.

    `linked`: whether images were reached by links to them, which may lie anywhere.
    """

    root: Path
    memory: FolderMemory = field(init=False)
    entries: FolderEntries = field(init=False)  # of the root, once it is open
    skipped: list[SkippedFile] = field(default_factory=list)
    found: list[str] = field(default_factory=list)  # images in spite of their names
    visited: set[tuple[int, int]] = field(default_factory=set)
    linked: bool = False

    def __post_init__(self) -> None:
        self.memory = FolderMemory(self.root)

    def skip(self, path: str, reason: str) -> None:
        """Note what is not used and why."""
        self.skipped.append(SkippedFile(Path(path), reason))

    def enter(self, folder: str) -> os.stat_result | None:
        """The status of a folder that is new to this scan; it counts as visited from here on."""
        try:
            status = os.stat(folder)  # noqa: PTH116  # one of possibly many
        except OSError as error:
            self.skip(folder, describe_error(error))
            return None
        identity = (status.st_dev, status.st_ino)
        if identity in self.visited:
            self.skip(folder, "leads to a folder that is scanned already")
            return None
        self.visited.add(identity)
        return status

    def open_root(self, name: str) -> FolderEntries:
        """The entries of the root, which counts as visited.

        Raises:
            DataError: it cannot be read.
        """
        status = self.enter(str(self.root))
        entries = None if status is None else self.list_folder(str(self.root), status)
        if entries is None:
            reason = self.skipped[0].reason
            raise DataError(f"{name}: {self.root} {reason}", "check its permissions")
        self.entries = entries
        return entries

    def list_folder(self, folder: str, status: os.stat_result) -> FolderEntries | None:
        """Visible entries; None, and a note, if the folder is unreadable."""
        listing = self.memory.find(status)
        if listing is None:
            started = time.time_ns()
            try:
                listing = _read_folder(folder)
            except OSError as error:
                self.skip(folder, describe_error(error))
                return None
            self.memory.keep(folder, status, listing, started)
        prefix = join_prefix(folder)
        for name, reason in listing.skipped:
            self.skip(prefix + name, reason)
        images, folders = listing.images, [(name, False) for name in listing.folders]
        if listing.links or listing.found:
            images = [*images, *listing.found]
            self.found += [prefix + name for name in listing.found]
            alone = not listing.images and not any(map(is_image_name, listing.links))
            # What a link leads to changes without a trace in the folder that holds the link.
            for name in listing.links:
                self.follow(prefix, name, images, folders, alone=alone)
        return FolderEntries(images, folders)

    def follow(
        self,
        prefix: str,
        name: str,
        images: list[str],
        folders: list[tuple[str, bool]],
        *,
        alone: bool,
    ) -> None:
        """Put a link where it belongs: images, folders, or what is skipped and why.

        `alone`: no file or link in its folder is named like an image.
        """
        try:
            mode = os.stat(prefix + name).st_mode  # noqa: PTH116  # one of possibly many
        except FileNotFoundError:
            self.skip(prefix + name, "is a broken link")
        except OSError as error:
            self.skip(prefix + name, describe_error(error))
        else:
            reason = _describe_kind(name, mode)
            if reason == NOT_AN_IMAGE:
                read = partial(read_head, prefix + name)
                reason = judge(name, images, read, alone=alone)
                if reason is None:
                    self.found.append(prefix + name)
            if stat.S_ISDIR(mode):
                folders.append((name, True))
            elif reason is not None:
                self.skip(prefix + name, reason)
            else:
                images.append(name)
                self.linked = True

    def walk(
        self, starts: Sequence[tuple[str, str]], *, entries: FolderEntries | None = None
    ) -> dict[str, list[str]]:
        """Image names below the root for each (key, folder), by key, unordered.

        Links to folders wait until every real folder has been visited: an image belongs to the
        class folder that it lies in, whatever else points there. `entries` are those of the root,
        if its images count as well, under the key "".
        """
        base = len(join_prefix(self.root))
        found: dict[str, list[str]] = {key: [] for key, _ in starts}
        real: deque[tuple[str, str, os.stat_result]] = deque()
        links: deque[tuple[str, str]] = deque()

        def visit(key: str, folder: str) -> None:
            if (status := self.enter(folder)) is not None:
                real.append((key, folder, status))

        def take(key: str, prefix: str, entries: FolderEntries) -> None:
            below = prefix[base:]
            found.setdefault(key, []).extend(below + name for name in entries.images)
            for name, is_link in sorted(entries.folders):
                if is_link:
                    links.append((key, prefix + name))
                else:
                    visit(key, prefix + name)

        if entries is not None:
            take("", join_prefix(self.root), entries)
        for key, folder in starts:
            visit(key, folder)
        while real or links:
            if not real:
                visit(*links.popleft())
                continue
            key, folder, status = real.popleft()
            if (listed := self.list_folder(folder, status)) is not None:
                take(key, join_prefix(folder), listed)
        return found


def _read_folder(folder: str) -> Listing:
    """List a folder.

    Raises:
        OSError: the folder cannot be read.
    """
    listing = Listing()
    others = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(HIDDEN_PREFIXES):
                continue
            # Most entries are images: one question to the entry decides.
            if entry.is_file(follow_symlinks=False):
                if is_image_name(name):
                    listing.images.append(name)
                else:
                    others.append(name)
            elif name.lower() in SYSTEM_NAMES:
                continue
            elif entry.is_symlink():
                listing.links.append(name)
            elif entry.is_dir(follow_symlinks=False):
                listing.folders.append(name)
            else:
                try:
                    mode = entry.stat(follow_symlinks=False).st_mode
                    reason = _describe_kind(name, mode) or NOT_AN_IMAGE
                except OSError as error:
                    reason = describe_error(error)
                listing.skipped.append((name, reason))
    if others:
        _look_at_others(folder, others, listing)
    for names in (listing.images, listing.folders, listing.links, listing.found):
        names.sort()
    listing.skipped.sort()
    return listing


def _look_at_others(folder: str, names: list[str], listing: Listing) -> None:
    """Sort files that are not named like images into those that are some and what is skipped."""
    prefix, images = join_prefix(folder), set(listing.images)
    for name in names:
        if is_hidden(name):
            continue
        reason = judge(name, images, partial(read_head, prefix + name), alone=not images)
        if reason is None:
            listing.found.append(name)
        else:
            listing.skipped.append((name, reason))


def _describe_kind(name: str, mode: int) -> str | None:
    """Why a file of this name and mode is not used; None if it is."""
    if stat.S_ISREG(mode):
        return None if is_image_name(name) else NOT_AN_IMAGE
    kinds = ((stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))
    return next((f"is a {kind}" for test, kind in kinds if test(mode)), "is a device")


def path_text(entry: SkippedFile) -> str:
    """What skipped files are sorted by."""
    return str(entry.path)
