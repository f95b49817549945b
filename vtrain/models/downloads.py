"""Published weights files: found in the cache and checked, or downloaded into it."""

import hashlib
import re
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from vtrain.errors import ModelError, ResourceError, UsageError, VtrainError
from vtrain.system.files import atomic_write
from vtrain.system.tensor_files import open_regular

_TIMEOUT_SECONDS = 30.0  # of silence, not of the whole download
_CHUNK_BYTES = 2**18
_HASH_PREFIX = re.compile(r"-([0-9a-f]{8,})\.[^.-]+$")


def published_name(url: str) -> str:
    """The file name at the end of an address."""
    return PurePosixPath(urlsplit(url).path).name


def find_published_file(
    url: str, folder: Path, *, notify: Callable[[str], None] | None = None
) -> Path:
    """The file of `url` in `folder`, with the hash that its name promises, or downloaded there.

    A damaged file is downloaded once more and replaced only by a good one.

    Raises:
        ModelError: No such file here and no way to download it, or it is damaged.
        ResourceError: The folder cannot be used or is full.
    """
    path = folder / published_name(url)
    found = _HASH_PREFIX.search(path.name)
    prefix = found[1] if found else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cached = path.exists()
    except OSError as error:
        raise _unusable_cache(folder, error) from error
    damage = _find_damage(path, prefix) if cached else None
    if cached and damage is None:
        return path
    if notify:
        notify(f"{damage}; downloading it again" if damage else f"downloading {url} to {folder}")
    try:
        download_file(url, path, sha256_prefix=prefix)
    except UsageError as error:  # what atomic_write says when the folder cannot be written
        raise _unusable_cache(folder, error.__cause__ or error) from error
    except ModelError as error:
        choices = "name a weights file instead, or none for random weights"
        if damage:
            raise ModelError(f"{damage}; {error.message}", f"delete it, or {choices}") from error
        hint = f"download {url} elsewhere and put it into {folder}; or {choices}"
        raise ModelError(error.message, hint) from error
    return path


def is_cached(url: str, folder: Path) -> bool:
    """Whether the file of `url` is in `folder` and undamaged: nothing has to be downloaded."""
    path = folder / published_name(url)
    found = _HASH_PREFIX.search(path.name)
    try:
        return path.exists() and _find_damage(path, found[1] if found else "") is None
    except (OSError, VtrainError):
        return False


def download_file(url: str, destination: Path, *, sha256_prefix: str) -> None:
    """Download `url` to `destination`, which appears only whole and with the right SHA-256.

    A progress bar goes to stderr if that is a terminal.

    Raises:
        ModelError: No connection, an error of the server, a body cut short, or another SHA-256.
        ResourceError, UsageError: See `vtrain.system.files.atomic_write`.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise _failed_download(destination, f"{url} is no http or https address")
    try:
        request = Request(url, headers={"User-Agent": "vtrain"})
        with (
            urlopen(request, timeout=_TIMEOUT_SECONDS) as response,
            atomic_write(destination) as stream,
        ):
            digest = _copy_body(response, stream, destination)
            if not digest.startswith(sha256_prefix):
                reason = f"SHA-256 starts with {digest[: len(sha256_prefix)]}, not {sha256_prefix}"
                raise _failed_download(destination, reason)
    except HTTPError as error:
        with error:  # it holds the connection open
            reason = f"the server answered {error.code} {error.reason}"
        raise _failed_download(destination, reason) from error
    except URLError as error:
        raise _failed_download(destination, str(error.reason)) from error
    except (OSError, HTTPException) as error:
        raise _failed_download(destination, str(error) or type(error).__name__) from error


def _find_damage(path: Path, sha256_prefix: str) -> str | None:
    """What is wrong with a cached file, if its hash is not the one in its name."""
    if path.is_file() and path.stat().st_size == 0:
        return f"{path} is damaged: it is empty"
    with open_regular(path) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest.startswith(sha256_prefix):
        return None
    got = digest[: len(sha256_prefix)]
    return f"{path} is damaged: its SHA-256 starts with {got}, not {sha256_prefix}"


def _copy_body(response: HTTPResponse, stream: BinaryIO, destination: Path) -> str:
    """Copy a response and give its SHA-256; a connection that broke off looks like its end."""
    length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    digest = hashlib.sha256()
    count = 0
    with tqdm(
        total=total, desc=destination.name, unit="B", unit_scale=True, disable=None, leave=False
    ) as bar:
        while chunk := response.read(_CHUNK_BYTES):
            stream.write(chunk)
            digest.update(chunk)
            count += len(chunk)
            bar.update(len(chunk))
    if total is not None and count != total:
        raise _failed_download(
            destination, f"the connection broke off after {count:,} of {total:,} bytes"
        )
    return digest.hexdigest()


def _failed_download(destination: Path, reason: str) -> ModelError:
    return ModelError(f"cannot download {destination.name}: {reason}")


def _unusable_cache(folder: Path, error: BaseException) -> ResourceError:
    reason = getattr(error, "strerror", None) or error
    return ResourceError(
        f"cannot use the weights cache {folder}: {reason}",
        "set TORCH_HOME to a folder that you may write to",
    )
