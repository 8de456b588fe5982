"""Downloads that happen once, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

from tqdm import tqdm

from steepest._registry import find_root

CHUNK = 1 << 20
TIMEOUT = 30.0


class DownloadError(OSError):
    """A data set is not there and cannot be had; the message says what to do."""


def cache_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of downloaded archives.

    Args:
        root: The folder to use. By default ``data/cache`` of the repository that the working
            directory or the package lies in, and ``~/.cache/steepest`` outside of one.
    """
    if root is not None:
        return Path(root).expanduser()
    repository = find_root()
    return repository / "data" / "cache" if repository else Path.home() / ".cache" / "steepest"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, path: Path, checksum: str) -> Path:
    """Make sure that a file is there and is the right one.

    What arrives is written beside its place and moved there when its checksum agrees, so that
    an interrupted download leaves nothing behind.

    Args:
        url: Where the file is.
        path: Where it belongs.
        checksum: Its SHA-256, in hexadecimal.

    Returns:
        ``path``.

    Raises:
        DownloadError: If the file is missing and cannot be downloaded, or is another one.
    """
    if path.is_file():
        if sha256(path) != checksum:
            raise DownloadError(
                f"{path} is not the file expected (its SHA-256 is not {checksum}): remove it, "
                f"then try again, or put the file of {url} there"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _copy(url, file, path.name)
        if sha256(part) != checksum:
            raise OSError("what arrived has another checksum")
        part.chmod(0o644)
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DownloadError(
            f"could not download {path.name} ({reason}). On a machine with a network, download "
            f"{url}, and put the file, as it is, at {path} (SHA-256 {checksum})"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _copy(url: str, file: object, label: str) -> None:
    # Some hosts refuse Python's own user agent.
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (steepest)"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm.wrapattr(file, "write", total=total, desc=label) as sink:
            while chunk := response.read(CHUNK):
                sink.write(chunk)
