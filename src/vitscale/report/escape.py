"""Text of strangers (study names, labels, reasons, device names) made safe for each format that shows it.

HTML is escaped by Jinja2 alone; what is here is for the formats that have no such guard.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
# C0 and C1 controls, and the marks that turn the direction of what follows them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_"},
}
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)")

T = TypeVar("T")


def plain(text: str) -> str:
    """Printable text: no terminal sequence, control character or lone surrogate is left."""
    text = _CONTROL.sub("", _SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))
    return text.encode("utf-8", "replace").decode()


def cleaned(value: T) -> T:
    """The same value with `plain` applied to every text in it, through dataclasses, tuples, lists and dicts."""
    new: Any = value
    if isinstance(value, str):
        new = plain(value)
    elif isinstance(value, list | tuple):
        new = type(value)(cleaned(one) for one in value)
    elif isinstance(value, dict):
        new = {cleaned(key): cleaned(one) for key, one in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        new = dataclasses.replace(value, **{name: cleaned(getattr(value, name)) for name in names})
    result: T = new
    return result


def script_json(document: Any) -> str:
    """JSON for the inside of a `<script>`: no character in it can end the element or the string."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return re.sub(r"[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with full precision; a missing value is an empty cell, and no text is a formula to a spreadsheet."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_csv_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def latex(text: str) -> str:
    """Text for LaTeX, on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(plain(text).split()))


def markdown(text: str) -> str:
    """Text for Markdown, on one line, inside or outside a table."""
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", " ".join(plain(text).split())).replace("\\&", "&amp;")


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\n")) else text
