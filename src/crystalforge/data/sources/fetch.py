"""Files by path or URL. A download is whole, checked and in place, or it is not there."""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crystalforge.common.errors import InputError, missing_extra
from crystalforge.common.files import atomic_file, sha256_file

TIMEOUT = 60.0  # seconds without a byte before a server is given up
BLOCK = 1 << 20


def is_url(path: str) -> bool:
    """Whether a path is a URL rather than a place on this machine."""
    return "://" in path


def fetch(path: str, downloads: Path, checksums: Mapping[str, str]) -> Path:
    """The local file of `path`, downloaded into `downloads` unless it is already there; checked if a sum is given."""
    if not is_url(path):
        local = Path(path).expanduser()
        if not local.is_file():
            raise InputError("there is no such file", source=local, remedy="correct data.source.path")
    else:
        name = Path(urlsplit(path).path).name
        # Files of one name from two addresses are two files.
        local = downloads / hashlib.sha256(path.encode()).hexdigest()[:12] / name
        if not local.exists() or (name in checksums and sha256_file(local) != checksums[name].lower()):
            _download(path, local, checksums.get(name))
    wanted = checksums.get(local.name)
    if wanted is not None and (have := sha256_file(local)) != wanted.lower():
        raise InputError(
            f"SHA-256 is {have}, expected {wanted}", source=local, remedy="fetch the file again or correct the checksum"
        )
    return local


def fetch_all(path: str, names: Sequence[str], downloads: Path, checksums: Mapping[str, str]) -> dict[str, Path]:
    """Those of `names` that exist in the directory (or below the URL) `path`; at least one must."""
    found: dict[str, Path] = {}
    for name in names:
        if is_url(path):
            try:
                found[name] = fetch(f"{path.rstrip('/')}/{name}", downloads, checksums)
            except NotThere:
                continue
        elif (Path(path).expanduser() / name).is_file():
            found[name] = fetch(str(Path(path).expanduser() / name), downloads, checksums)
    if not found:
        raise InputError(f"there is none of {', '.join(names)}", source=path, remedy="correct data.source.path")
    return found


class NotThere(InputError):
    """The server answers that it has no such file."""


def _download(url: str, target: Path, checksum: str | None) -> None:
    with atomic_file(target) as temporary:
        if urlsplit(url).scheme in ("http", "https"):
            _http(url, temporary)
        else:
            _object_store(url, temporary)
        if checksum is not None and (have := sha256_file(temporary)) != checksum.lower():
            raise InputError(
                f"the download has SHA-256 {have}, expected {checksum}",
                source=url,
                remedy="the file was changed or damaged; correct the checksum only if the change is meant",
            )


def _http(url: str, target: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "crystalforge"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply, target.open("wb") as stream:
            shutil.copyfileobj(reply, stream, BLOCK)
            expected = reply.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        kind = NotThere if error.code in (403, 404, 410) else InputError
        raise kind(f"the server answers {error.code} {error.reason}", source=url, remedy="correct the URL") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise InputError(
            f"cannot be downloaded ({error})", source=url, remedy="check the network, or download it by hand"
        ) from error
    if expected is not None and os.path.getsize(target) != int(expected):
        raise InputError(
            f"the connection ended after {os.path.getsize(target)} of {expected} bytes", source=url, remedy="try again"
        )


def _object_store(url: str, target: Path) -> None:
    try:
        import fsspec
    except ImportError as error:
        raise missing_extra("fsspec", "sources", error) from error
    try:
        opened: Any = fsspec.open(url, "rb")
        with opened as stream, target.open("wb") as out:
            shutil.copyfileobj(stream, out, BLOCK)
    except ImportError as error:  # fsspec knows the scheme, its driver (s3fs, gcsfs, ...) is not installed
        raise InputError(str(error), source=url, remedy="install fsspec's driver for this scheme") from error
    except FileNotFoundError as error:
        raise NotThere("there is no such object", source=url, remedy="correct the URL") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read ({error})", source=url, remedy="check the address and the access") from error
