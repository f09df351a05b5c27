"""The page over several studies: each with its question, answer and main figures, and the way to its own report.

It holds drawings only and runs no script. Studies that ship together (a folder of `studies`, or the CPU twins in it)
and have no results yet are named, so that a page over half of them does not look whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from vitscale.analysis import text
from vitscale.analysis.result import StudyResult
from vitscale.config.load import shipped
from vitscale.config.runspec import slug
from vitscale.records.writer import make_folder, write_whole
from vitscale.report import tables
from vitscale.report.document import Part, document
from vitscale.report.escape import cleaned, plain
from vitscale.report.figures import Drawing, draw
from vitscale.report.page import environment, policy, template
from vitscale.report.tables import Table
from vitscale.report.write import FOLDER, PAGE

MAIN_FIGURES = (
    "accuracy_batch", "accumulation", "accuracy", "test_loss", "batch", "speedup", "split", "throughput", "loss",
)  # fmt: skip
"""What a study's chapter shows: the first `MOST_FIGURES` of these that are drawn."""
MOST_FIGURES = 3

_FIGURE = re.compile(r"fig(\d+)(?:_(\d+))?(?=_|$)")
_TWIN = "_cpu"


@dataclass(frozen=True)
class Figure:
    """A drawing, and what the study's own report says of it."""

    part: Part
    svg: Markup


@dataclass(frozen=True)
class Chapter:
    """One study on the page, plain text but for its drawings."""

    folder: str
    """Its folder below the collection's; empty where there is none."""
    study: str
    state: str
    """In a few words: what there is of it."""
    question: str = ""
    answer: str = ""
    banners: tuple[str, ...] = ()
    warnings: str = ""
    figures: tuple[Figure, ...] = ()
    skipped: Table | None = None
    problem: str = ""
    """Why there is no answer."""

    @property
    def heading(self) -> str:
        """`Figures 8 and 9` of a study `paper/fig08_09`; any other study's name as it is."""
        name = self.study.rsplit("/", 1)[-1]
        numbers = _FIGURE.match(name)
        if numbers is None:
            return self.study
        first, last = numbers.groups()
        figures = f"Figures {int(first)} and {int(last)}" if last else f"Figure {int(first)}"
        return f"{figures}, on CPUs" if name.endswith(_TWIN) else figures

    @property
    def anchor(self) -> str:
        """Id of its section."""
        return slug(self.folder or self.study)

    @property
    def link(self) -> str | None:
        """Relative address of its own report, from the collection's page."""
        return f"../{quote(os.fsencode(self.folder))}/{FOLDER}/{PAGE}" if self.folder and not self.problem else None


def told(folder: str, result: StudyResult) -> Chapter:
    """The chapter of a study that could be read; its own report lies in `folder`."""
    drawings = {one.name: one for one in draw(result)}
    whole = document(result, list(drawings.values()))
    main = [drawings[name] for name in MAIN_FIGURES if name in drawings][:MOST_FIGURES]
    parts = {part.name: part for part in whole.parts}
    skipped = cleaned(tables.skipped_table(result))
    return Chapter(
        folder=folder,
        study=whole.study,
        state=_state(result),
        question=whole.question,
        answer=whole.answer,
        banners=whole.banners,
        warnings=text.count(len(whole.alerts), "warning") if whole.alerts else "",
        figures=tuple(_figure(parts[one.name], one, slug(folder)) for one in main),
        skipped=skipped if skipped.rows else None,
    )


def unreadable(folder: str, reason: str) -> Chapter:
    """The chapter of a study whose records are damaged."""
    return Chapter(plain(folder), plain(folder), "cannot be read", problem=plain(reason))


def not_run(found: Sequence[Chapter]) -> list[Chapter]:
    """Chapters of the shipped studies that belong with those found, by their names, and are not among them."""
    there = {one.study for one in found} | {one.folder for one in found}
    groups = {_group(one.study) for one in found if "/" in one.study}
    return [
        Chapter("", name, "not run", problem=f"Not run: `vitscale run {name}`.")
        for name in shipped()
        if _group(name) in groups and not {name, name.rpartition("/")[2]} & there
    ]


def write_collection(folder: Path, chapters: Sequence[Chapter]) -> Path:
    """Write `report/index.html` over the studies' folders in `folder`.

    Returns:
        The page.

    Raises:
        ResultsError: it cannot be written.
    """
    page = folder / FOLDER / PAGE
    make_folder(page.parent)
    write_whole(page, render(plain(folder.resolve().name), chapters).encode())
    return page


def render(title: str, chapters: Sequence[Chapter]) -> str:
    """The page, as HTML."""
    style = template("style.css")
    page = environment().get_template("collection.html.j2")
    return page.render(title=title, chapters=chapters, policy=policy(style, ()), style=Markup(style))


def _state(result: StudyResult) -> str:
    runs = result.analysis.runs
    valid = sum(run.valid for run in runs)
    counted = text.count(len(runs), "run") if valid == len(runs) else f"{valid} of {text.count(len(runs), 'run')} valid"
    return f"{counted}, {len(result.skipped)} skipped" if result.skipped else counted


def _group(name: str) -> tuple[str, bool]:
    """Where a study ships, and whether it is a twin for CPUs."""
    return name.rpartition("/")[0], name.endswith(_TWIN)


def _figure(part: Part, drawing: Drawing, anchor: str) -> Figure:
    """The drawing with ids of its own: one page holds several of the same name."""
    svg = drawing.svg.replace('id="', f'id="{anchor}-').replace("url(#", f"url(#{anchor}-")
    return Figure(part, Markup(svg))
