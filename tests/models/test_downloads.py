"""Downloads are whole and verified or leave nothing behind, and say what to do instead."""

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.helpers.told import Told
from vtrain.errors import ExitCode, ModelError, ResourceError, UsageError
from vtrain.models.downloads import download_file, find_published_file, published_name
from vtrain.system.files import atomic_write

CONTENT = bytes(range(256)) * 4096  # more than one chunk
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"tiny-{DIGEST[:8]}.pth"


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT at /good/, a part of it at /cut/, forwards /moved/, and knows no more."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/good/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path.startswith(("/good/", "/cut/", "/unsized/")):
            self.send_response(200)
            if not self.path.startswith("/unsized/"):
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            cut = 1000 if self.path.startswith("/cut/") else len(CONTENT)
            self.wfile.write(CONTENT[:cut])
        else:
            self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """Address of a local server, and the paths it was asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    requests: list[str] = []
    handler = type("RecordingHandler", (Handler,), {"requests": requests})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", requests
        http.shutdown()
        thread.join()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address at which nobody listens."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return f"http://127.0.0.1:{port}/{NAME}"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("route", ["good", "unsized", "moved"])
def test_whole_file_arrives(
    tmp_path: Path,
    server: tuple[str, list[str]],
    capfd: pytest.CaptureFixture[str],
    route: str,
) -> None:
    download_file(f"{server[0]}/{route}/{NAME}", tmp_path / NAME, sha256_prefix=DIGEST[:8])
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert names(tmp_path) == [NAME]
    assert capfd.readouterr() == ("", "")  # off a terminal there is no bar


@pytest.mark.parametrize(
    ("route", "prefix", "reason"),
    [
        ("cut", DIGEST[:8], f"the connection broke off after 1,000 of {len(CONTENT):,} bytes"),
        ("good", "00000000", f"SHA-256 starts with {DIGEST[:8]}, not 00000000"),
        ("absent", DIGEST[:8], "the server answered 404 Not Found"),
    ],
)
def test_failed_download_leaves_nothing(
    tmp_path: Path, server: tuple[str, list[str]], route: str, prefix: str, reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        download_file(f"{server[0]}/{route}/{NAME}", tmp_path / NAME, sha256_prefix=prefix)
    assert caught.value.message == f"cannot download {NAME}: {reason}"
    assert names(tmp_path) == []


def test_refused_connection_is_named(tmp_path: Path, nowhere: str) -> None:
    with pytest.raises(ModelError, match=rf"cannot download {NAME}: .*Connection refused"):
        download_file(nowhere, tmp_path / NAME, sha256_prefix=DIGEST[:8])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x.pth", "x.pth"])
def test_only_http_is_spoken(tmp_path: Path, url: str) -> None:
    with pytest.raises(ModelError, match="is no http or https address"):
        download_file(url, tmp_path / NAME, sha256_prefix="")
    assert names(tmp_path) == []


def test_download_into_a_missing_folder_names_it(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    with pytest.raises(UsageError, match="absent does not exist"):
        download_file(
            f"{server[0]}/good/{NAME}", tmp_path / "absent" / NAME, sha256_prefix=DIGEST[:8]
        )


def test_name_is_the_end_of_the_address() -> None:
    assert published_name("https://host/models/a-0123abcd.pth?download=1") == "a-0123abcd.pth"


def test_cached_file_needs_no_network(tmp_path: Path, nowhere: str) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    said: list[str] = []
    assert find_published_file(nowhere, tmp_path, reporter=Told(said)) == tmp_path / NAME
    assert said == []


def test_missing_file_is_downloaded_into_a_new_folder(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    url, folder = f"{server[0]}/good/{NAME}", tmp_path / "hub" / "checkpoints"
    said: list[str] = []
    assert find_published_file(url, folder, reporter=Told(said)).read_bytes() == CONTENT
    assert said == [f"downloading {url} to {folder}"]
    find_published_file(url, folder)
    assert server[1] == [f"/good/{NAME}"]


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT[:99] + b"x" + CONTENT[100:]])
def test_damaged_cached_file_is_replaced(
    tmp_path: Path, server: tuple[str, list[str]], damaged: bytes
) -> None:
    (tmp_path / NAME).write_bytes(damaged)
    said: list[str] = []
    path = find_published_file(f"{server[0]}/good/{NAME}", tmp_path, reporter=Told(said))
    assert path.read_bytes() == CONTENT
    assert len(said) == 1
    assert said[0].startswith(f"{path} is damaged: ")
    assert said[0].endswith("; downloading it again")


def test_damaged_cached_file_without_network_is_named_and_kept(
    tmp_path: Path, nowhere: str
) -> None:
    (tmp_path / NAME).write_bytes(b"damaged")
    with pytest.raises(ModelError) as caught:
        find_published_file(nowhere, tmp_path)
    assert caught.value.message.startswith(
        f"{tmp_path / NAME} is damaged: its SHA-256 starts with "
        f"{hashlib.sha256(b'damaged').hexdigest()[:8]}, not {DIGEST[:8]}; cannot download {NAME}: "
    )
    assert (caught.value.hint or "").startswith("delete it, or name a weights file")
    assert (tmp_path / NAME).read_bytes() == b"damaged"


def test_without_network_the_way_out_is_named(tmp_path: Path, nowhere: str) -> None:
    with pytest.raises(ModelError) as caught:
        find_published_file(nowhere, tmp_path)
    assert caught.value.message.startswith(f"cannot download {NAME}: ")
    assert caught.value.hint == (
        f"download {nowhere} elsewhere and put it into {tmp_path}; "
        "or name a weights file instead, or none for random weights"
    )


def test_folder_that_cannot_be_made(tmp_path: Path, nowhere: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError) as caught:
        find_published_file(nowhere, tmp_path / "file" / "checkpoints")
    assert caught.value.exit_code == ExitCode.RESOURCE
    assert "file/checkpoints: Not a directory" in caught.value.message
    assert caught.value.hint == "set TORCH_HOME to a folder that you may write to"


def test_folder_without_permission(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop the superuser
    with pytest.raises(ResourceError) as caught:
        find_published_file(f"{server[0]}/good/{NAME}", tmp_path)
    assert caught.value.message == f"cannot use the weights cache {tmp_path}: Permission denied"


def test_full_disk_is_a_resource_error(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=f"cannot write .*{NAME}: no space left"):
        find_published_file(f"{server[0]}/good/{NAME}", tmp_path)
    assert names(tmp_path) == []


def test_other_downloads_of_the_same_file_do_not_disturb(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    with atomic_write(tmp_path / NAME) as stream:
        stream.write(b"half")
        download_file(f"{server[0]}/good/{NAME}", tmp_path / NAME, sha256_prefix=DIGEST[:8])
        assert (tmp_path / NAME).read_bytes() == CONTENT
        stream.seek(0)
        stream.write(CONTENT)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert names(tmp_path) == [NAME]
