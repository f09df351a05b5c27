"""The report as Markdown, for a repository or a pull request."""

from __future__ import annotations

import re

from vitscale.report.document import LIKE_FOR_LIKE, Document, Message
from vitscale.report.escape import markdown
from vitscale.report.reasons import Reason
from vitscale.report.tables import Table


def render(document: Document) -> str:
    """`report.md`; figures are links to the files beside it."""
    blocks = [f"# {markdown(document.study)}", markdown(document.question), f"**{markdown(document.answer)}**"]
    blocks += [f"> {markdown(banner)}" for banner in document.banners]
    if document.reasons:
        blocks += [
            "## Why it is not faster",
            "\n".join(_reason(one) for one in document.reasons),
            document.more_reasons,
        ]
    if document.parity.rows:
        blocks += [f"## {LIKE_FOR_LIKE}", _table(document.parity)]
    for part in document.parts:
        blocks.append(f"## {part.title}")
        if part.drawn:
            blocks.append(f"![{part.alternative}](figures/{part.name}.svg)")
        blocks.append(markdown(" ".join((part.reading, *part.notes))))
        blocks.append(_table(part.table))
    blocks += ["## Findings", "\n".join(_finding(one) for one in document.findings) or "None."]
    blocks += ["## How it was measured", "\n".join(f"- {term}: {markdown(words)}" for term, words in document.method)]
    blocks.append(_table(document.batch))
    if document.exceptions:
        blocks += ["## Not valid, skipped", *(_table(table) for table in document.exceptions)]
    blocks += ["## Launches", _table(document.launches) or "None."]
    if document.resolved:
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", document.resolved)), default=0))
        blocks += ["## The study, after overrides", f"{fence}json\n{document.resolved}\n{fence}"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _reason(one: Reason) -> str:
    changes = [
        f"  {number}. {markdown(change.cause)}. Change: {markdown(change.hint)}"
        f"{f', {markdown(change.override)}' if change.override else ''}. {markdown(change.evidence)}"
        for number, change in enumerate(one.changes, 1)
    ]
    return "\n".join((f"- {markdown(one.run)}: {markdown(one.text)}", *changes))


def _finding(one: Message) -> str:
    hint = f" Hint: {markdown(one.hint)}." if one.hint else ""
    return f"- {one.severity}: {markdown(one.evidence)}{hint}"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    rule = ["---" if index < table.words else "---:" for index in range(len(table.header))]
    rows = [[markdown(cell) for cell in row] for row in (table.header, *table.rows)]
    lines = [_line(rows[0]), _line(rule), *(_line(row) for row in rows[1:])]
    return f"{markdown(table.caption)}:\n\n" + "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
