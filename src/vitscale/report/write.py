"""Writing the report room's files: the page, figures, tables and Markdown."""

from __future__ import annotations

from pathlib import Path

from vitscale.analysis.result import StudyResult
from vitscale.errors import ResultsError
from vitscale.records.writer import make_folder, write_whole
from vitscale.report import markdown, page, sheets
from vitscale.report.document import document
from vitscale.report.figures import NAMES, draw

FOLDER = "report"
PAGE = "index.html"


def write_report(folder: Path, result: StudyResult) -> Path:
    """Write `report/` into a results folder, each file whole or not at all. The same result gives the same bytes.

    Args:
        folder: results folder.
        result: what `analysis.analyse` made of it.

    Returns:
        The page.

    Raises:
        ResultsError: a file cannot be written.
    """
    root = folder / FOLDER
    drawings = draw(result)
    told = document(result, drawings)
    _write_all(root / "figures", {f"{one.name}.svg": one.svg_file for one in drawings})
    _write_all(root / "figures", {f"{one.name}.png": one.png_file() for one in drawings})
    _remove_old(root / "figures", {one.name for one in drawings})
    _write_all(root / "tables", {name: text.encode() for name, text in sheets.sheets(result).items()})
    _write_all(root / "tables", {"scaling.tex": sheets.scaling_latex(result).encode()})
    _write_all(root, {"report.md": markdown.render(told).encode(), PAGE: page.render(told, drawings).encode()})
    return root / PAGE


def _write_all(folder: Path, contents: dict[str, bytes]) -> None:
    make_folder(folder)
    for name, data in contents.items():
        write_whole(folder / name, data)


def _remove_old(folder: Path, drawn: set[str]) -> None:
    """Figures of an earlier report that this one has not: they would be shown for it."""
    for name in set(NAMES) - drawn:
        for kind in ("svg", "png"):
            try:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
            except OSError as error:
                raise ResultsError(f"cannot remove `{name}.{kind}`: {error.strerror}") from None
