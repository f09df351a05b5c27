"""Source files: named without the folders that lead to them, read line by line whatever is in them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitscale.errors import UsageError
from vitscale.records.writer import file_digest

LONGEST_LINE = 1 << 16
"""Characters of a line that are held at once: a longer one (binary junk, a progress bar) is read in such pieces."""

_BYTE_ORDER_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
# Control and format characters, lone surrogates, line separators: they would break a line or steer a terminal.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Source(NamedTuple):
    """One file to import."""

    path: Path
    name: str
    """Below the folder that all files of the import have in common: no home folder, no user's name."""
    sha256: str
    """Hex."""


def sources(paths: Sequence[Path]) -> list[Source]:
    """The files, each once, in the order given.

    Raises:
        UsageError: one is not there, is no regular file, cannot be read, or is a copy of another.
    """
    resolved = list(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))  # noqa: PTH100
    for path in resolved:
        if not path.is_file():
            problem = "is a folder" if path.is_dir() else "is no file" if path.exists() else "does not exist"
            raise UsageError(f"`{path}` {problem}", "give log files or tables, for example logs/*.log")
    common = Path(os.path.commonpath([path.parent for path in resolved])) if resolved else Path()
    found: list[Source] = []
    for path in resolved:
        try:
            digest = file_digest(path)
        except OSError as error:
            raise UsageError(f"cannot read `{path}`: {error.strerror}") from None
        name = printable(path.relative_to(common).as_posix())
        same = next((one.name for one in found if one.sha256 == digest), None)
        if same is not None:
            raise UsageError(f"`{name}` is `{same}` byte for byte", "one measurement counts once: give it once")
        found.append(Source(path, name, digest))
    return found


def lines(source: Source) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line; never more than `LONGEST_LINE` characters in memory.

    Bytes that are not of the encoding become U+FFFD. A piece of a longer line has that line's number.
    """
    with source.path.open("rb") as file:
        start = file.read(3)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if start.startswith(mark)), "utf-8")
    with source.path.open(encoding=encoding, errors="replace", newline="\n") as text:
        number, whole = 1, True
        while piece := text.readline(LONGEST_LINE):
            yield number, piece
            whole = piece.endswith("\n")
            number += whole


def plain(text: str) -> str:
    """Without a terminal's colours."""
    return _ESCAPE.sub("", text) if "\x1b" in text else text


def printable(text: str) -> str:
    """As a record may hold it: one line without control characters."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return "".join(one for one in text if unicodedata.category(one) not in _UNPRINTABLE).strip()
