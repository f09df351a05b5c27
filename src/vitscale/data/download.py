"""Fetching one published file: https only, a size limit, a deadline, and the checksum before it gets its name."""

from __future__ import annotations

import http.client
import os
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import urlsplit

from vitscale.data.releases import Pin
from vitscale.data.store import Report
from vitscale.errors import DataError

READ_TIMEOUT_S = 30.0
TOTAL_TIMEOUT_S = 3600.0
_BLOCK_BYTES = 1 << 20
_REPORT_EVERY_BYTES = 32 << 20


class Opener(Protocol):
    """What opens a URL; urllib's, or a test's."""

    def open(self, fullurl: str, data: None = None, timeout: float = READ_TIMEOUT_S) -> IO[bytes]:
        """Open a URL for reading."""


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https and nowhere else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def secure_opener() -> urllib.request.OpenerDirector:
    """An opener that knows https and nothing else (urllib's own also opens http, ftp, file and data)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _SecureRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def require_https(url: str) -> None:
    """Refuse any other scheme.

    Raises:
        DataError: naming the URL.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise DataError(f"`{url}` is not https", "download the file yourself and give it with `--from PATH`")


def fetch(url: str, target: Path, pin: Pin, size_bytes: int, report: Report, opener: Opener | None = None) -> None:
    """Download a file of known size and checksum; it appears under its name only when both are right.

    Raises:
        DataError: not https, no connection, too slow, too large, cut short, or another checksum.
    """
    require_https(url)
    report(f"downloading {url} ({size_bytes:,} bytes)")
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _copy(url, file, size_bytes, report, secure_opener() if opener is None else opener)
        actual = pin.actual(Path(temporary).read_bytes())
        if actual != pin.digest:
            raise _failed(url, f"has {pin.algorithm} {actual}, expected {pin.digest}")
        Path(temporary).replace(target)
    except (urllib.error.URLError, http.client.HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        raise _failed(url, f"cannot be downloaded: {getattr(error, 'reason', None) or error}") from None
    except OSError as error:
        raise DataError(f"`{target.parent}` cannot be written: {error.strerror}") from None
    finally:
        Path(temporary).unlink(missing_ok=True)


def _copy(url: str, file: IO[bytes], size_bytes: int, report: Report, opener: Opener) -> None:
    """Copy the answer, stopping one byte after the expected size."""
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    received = 0
    with opener.open(url, None, READ_TIMEOUT_S) as answer:
        while block := answer.read(min(_BLOCK_BYTES, size_bytes + 1 - received)):
            file.write(block)
            before, received = received, received + len(block)
            if received > size_bytes:
                raise _failed(url, f"has more than {size_bytes:,} bytes")
            if time.monotonic() > deadline:
                raise _failed(url, f"took more than {TOTAL_TIMEOUT_S:.0f} s")
            if before // _REPORT_EVERY_BYTES != received // _REPORT_EVERY_BYTES:
                report(f"{received:,} of {size_bytes:,} bytes")
    if received != size_bytes:
        raise _failed(url, f"ended after {received:,} of {size_bytes:,} bytes")


def _failed(url: str, what: str) -> DataError:
    return DataError(f"`{url}` {what}", "try again, or download it elsewhere and give it with `--from PATH`")
