"""What `vitscale predict` and `recommend` do: the room that predicts meets the one that knows what can be started.

Imports are inside the functions, as in `cli.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitscale import workflow
from vitscale.errors import VitscaleError
from vitscale.starting import LauncherName

if TYPE_CHECKING:
    from vitscale.cost.scaling import Layout
    from vitscale.predict.ask import Answers, Starts
    from vitscale.predict.recommend_ask import Answer
    from vitscale.predict.series import Asked, Series
    from vitscale.study.where import Where


def predict(
    path: Path,
    words: Sequence[str],
    world_size: str | None,
    series: str | None,
    ranks_per_node: int | None,
    *,
    suggest: bool,
    one: bool,
) -> Answers:
    """Predict every series asked for; of a results folder what was fitted and predicted is written into it.

    Raises:
        UsageError: nothing to predict from, or no series that can be predicted; with `one` also several series.
    """
    from vitscale.predict import ask

    starts = _starts(path) if suggest else None
    found = ask.answers(path, words, world_size, series, ranks_per_node, one=one, starts=starts)
    if path.is_dir():
        ask.keep(path, found, beside=series is not None)
    return found


def _starts(path: Path) -> Starts:
    """How a run is added to a results folder or a table."""
    from vitscale.data.catalog import store_root
    from vitscale.predict.rows import row, table_of
    from vitscale.predict.suggest import Start
    from vitscale.study.further import further, held
    from vitscale.study.plan import described

    table = table_of(path)
    if table is not None:
        return lambda *of: Start(row=row(table, *of))
    try:
        at = held(path)
    except VitscaleError as error:
        refused = Start(reason=error.message)
        return lambda *_: refused
    where: Where | VitscaleError
    try:
        where = workflow.resolve(at.study, at.words(), LauncherName(at.launcher or "local"))[1]
    except VitscaleError as error:
        where = error
    images_of = described(store_root())

    def start(series: Series, asked: Asked, layout: Layout) -> Start:
        return Start(*further(at, where, images_of, series.name, layout, asked.told))

    return start


def recommend(
    source: str,
    words: Sequence[str],
    memory: str | None,
    deadline: str | None,
    budget: float | None,
    devices: str | None,
    target_accuracy: float | None,
) -> tuple[Answer, Path | None]:
    """Recommend a configuration; of a results folder its study file is written into it, and its path returned.

    Raises:
        UsageError: what cannot be read or meant, or limits that nothing keeps.
    """
    from vitscale.predict import recommend_ask
    from vitscale.predict.recommended_study import FILE

    keys: dict[str, Any] = {"memory": memory, "deadline": deadline, "budget": budget, "devices": devices}
    answer = recommend_ask.answer(source, words, **keys, target_accuracy=target_accuracy)
    if not answer.source.series:
        return answer, None
    path = Path(source) / FILE
    path.write_text(answer.study, encoding="utf-8")
    return answer, path
