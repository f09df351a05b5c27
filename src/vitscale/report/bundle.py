"""The Vega bundle that draws a page's charts: built by vl-convert once per version, then kept in the user's cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert

from vitscale.errors import ResultsError
from vitscale.records.writer import make_folder, write_whole


@cache
def bundle(snippet: str, vega_lite: str) -> str:
    """JavaScript that runs `snippet`, with Vega, Vega-Lite and the expression interpreter inside.

    Building takes over a second (measured: docs/log.md), a quarter of a report, and gives the same text every time.
    """
    path = _folder() / f"vega-{_key(snippet, vega_lite)}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.stat().st_uid == os.geteuid():
            return path.read_text(encoding="utf-8")
    text: str = vl_convert.javascript_bundle(snippet, vl_version=vega_lite)
    # Neither may end the element it stands in; the text would have to be escaped, not the hash fitted to it.
    assert "</script" not in text.lower()
    assert "<!--" not in text
    with contextlib.suppress(ResultsError):  # a cache that cannot be written costs time only
        make_folder(path.parent)
        write_whole(path, text.encode())
    return text


def _folder() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache_home) if cache_home else Path.home() / ".cache") / "vitscale"


def _key(snippet: str, vega_lite: str) -> str:
    told = f"{version('vl-convert-python')} {vega_lite} {snippet}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]
