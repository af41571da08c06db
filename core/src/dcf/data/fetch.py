"""Archives that are downloaded: what can go wrong, and how nothing half done is left behind."""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import sys
import tarfile
import tempfile
import urllib.error
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dcf.errors import DataError

__all__ = ["NETWORK", "Archive", "fetch", "patience", "reason"]

log = logging.getLogger(__name__)

#: What a download raises without a network, or when it breaks off; `URLError` and time-outs are `OSError`.
NETWORK: Final = (
    OSError, RuntimeError, http.client.HTTPException, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip
#: Seconds without a byte after which a download is given up.
_TIMEOUT: Final = 30.0


class Archive(NamedTuple):
    """A file on a server.

    Attributes:
        url: Where it is.
        md5: Of the file.
        folder: What it unpacks to: one folder.
    """

    url: str
    md5: str
    folder: str


def fetch(name: str, archive: Archive, root: Path) -> None:
    """Download an archive, unless it lies in `root` already, and unpack it there.

    Both happen in a scratch folder, and the result is moved at once, so that no half folder ever lies in root. The
    archive is not kept.

    Args:
        name: The dataset's name, for messages.
        archive: What to download.
        root: Where its folder goes; made where it is missing. There is no such folder in it yet.

    Raises:
        DataError: When it cannot be downloaded, is not the file that was published, or cannot be unpacked.
    """
    from torchvision.datasets.utils import check_integrity, download_url, extract_archive

    file = archive.url.rsplit("/", 1)[-1]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dcf-download-", dir=root) as scratch:
            packed = root / file
            if not check_integrity(packed, archive.md5):
                log.info("downloading %s to '%s'", file, root)
                packed = Path(scratch) / file
                with patience(), contextlib.redirect_stdout(sys.stderr):
                    download_url(archive.url, scratch, file, archive.md5)
            unpacked = Path(scratch) / "unpacked"
            extract_archive(packed, unpacked)
            (unpacked / archive.folder).replace(root / archive.folder)
    except NETWORK as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise DataError(
            f"could not download {name} to '{root}' ({reason(error)}); "
            "fetch it on a machine with network and pass root=... of the folder that has it"
        ) from None


@contextlib.contextmanager
def patience(seconds: float = _TIMEOUT) -> Iterator[None]:
    """Give up on a silent server; torchvision itself would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def reason(error: BaseException) -> str:
    """The last line of an error's text, which is where torchvision puts the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
