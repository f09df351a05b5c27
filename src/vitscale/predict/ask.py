"""A question as `vitscale predict` takes it, and its answers: one per series."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vitscale.config.study import EngineName, Precision, Protocol, Rate, ZeroStage
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.hardware import catalog
from vitscale.predict.document import prediction_document, remove, write
from vitscale.predict.model import Calibration, Prediction, calibrate, predict
from vitscale.predict.priors import find_device
from vitscale.predict.read import Refused, read_each
from vitscale.predict.recommend_ask import amount
from vitscale.predict.series import Asked, Series
from vitscale.predict.suggest import Advice, Start, suggest

_KINDS: dict[str, TypeAdapter[object]] = {
    "protocol": TypeAdapter(Protocol),
    "engine": TypeAdapter(EngineName),
    "precision": TypeAdapter(Precision),
    "link": TypeAdapter(Rate),
}
_AMOUNTS = ("price_per_hour", "epochs")
_COUNTS = ("micro_batch", "grad_accum", "global_batch")


Starts = Callable[[Series, Asked, Layout], Start]
"""How a run of a series is added to what the series was read from."""


@dataclass(frozen=True)
class Told:
    """The answer for one series."""

    calibration: Calibration
    prediction: Prediction
    advice: Advice | None
    """Runs to add, where they were asked for or too little is measured."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        found = prediction_document(self.prediction)
        return found if self.advice is None else {**found, "advice": asdict(self.advice)}


@dataclass(frozen=True)
class Answers:
    """All that was asked for."""

    told: tuple[Told, ...]
    """One at least."""
    refused: tuple[Refused, ...]
    unread: tuple[str, ...] = ()
    """Names of those of them that no question can be asked of; the others cannot answer this one."""


def answers(
    path: Path,
    words: Sequence[str],
    sizes: str | None,
    name: str | None,
    ranks_per_node: int | None,
    *,
    one: bool,
    starts: Starts | None = None,
) -> Answers:
    """Read, fit and predict, each series by itself.

    Args:
        path: results folder or table.
        words: `key=value`.
        sizes: world sizes with commas between; None doubles beyond what there is.
        name: of one series; None is all.
        ranks_per_node: of the asked layouts.
        one: whether there must be one series.
        starts: how a run of a series is added; None looks for runs to add only where fewer than two sizes are measured.

    Raises:
        UsageError: what cannot be read or meant; no series that can be predicted.
    """
    wanted, asked = _sizes(sizes), parse(words)
    series, refused = read_each(path)
    named: list[Series | Refused] = [*series, *refused]
    picked = [one.name for one in named] if name is None else [chosen(named, name).name]
    if one and len(picked) > 1:
        raise UsageError(f"`{path.name}` has {len(picked)} series", "--json prints one: name it with --series")
    told: list[Told] = []
    left = [each for each in refused if each.name in picked]
    for each in series:
        if each.name in picked:
            try:
                told.append(_answer(each, asked, wanted, ranks_per_node, starts))
            except UsageError as error:
                left.append(Refused(each.name, error.message, error.hint))
    if not told:
        raise _none(left)
    return Answers(tuple(told), tuple(left), tuple(one.name for one in refused if one.name in picked))


def _answer(series: Series, asked: Asked, sizes: list[int], ranks_per_node: int | None, starts: Starts | None) -> Told:
    if asked.device is not None and find_device(series.device) == catalog.device(asked.device):
        asked = replace(asked, device=None)  # its own, by another name
    calibration = calibrate(series)
    wanted = sizes or beyond(series)
    prediction = predict(calibration, wanted, asked, ranks_per_node=ranks_per_node)
    if starts is None and len({one.layout.world_size for one in series.measured}) > 1:
        return Told(calibration, prediction, None)
    start = None if starts is None else partial(starts, series, asked)
    advice = suggest(calibration, max(wanted), asked, ranks_per_node=ranks_per_node, start=start)
    return Told(calibration, prediction, advice)


def _none(refused: Sequence[Refused]) -> UsageError:
    """Of one reason that reason, of several each with its series."""
    first = refused[0]
    if len({one.message for one in refused}) == 1:
        return UsageError(first.message, first.hint)
    each = "; ".join(f"`{one.name}`: {one.message}" for one in refused)
    return UsageError(f"none of {len(refused)} series can be predicted: {each}", first.hint)


def keep(folder: Path, found: Answers, *, beside: bool) -> None:
    """Write what was fitted and predicted into a results folder, `beside` what was fitted to its other series.

    What an earlier call predicted of a series that cannot be read now is taken away; one that only cannot answer what
    was asked now keeps what it has.
    """
    told = found.told
    kept = beside or len(found.refused) > len(found.unread)
    write(folder, [one.calibration for one in told], [one.prediction for one in told], beside=kept)
    for name in found.unread:
        remove(folder, name)


def _sizes(text: str | None) -> list[int]:
    found = []
    for word in (text or "").split(",") if text is not None else ():
        word = word.strip().replace("_", "")
        if not (word.isascii() and word.isdigit() and int(word[:20]) > 0):
            raise UsageError(f"`--world-size` has {word!r}, not a whole number above 0", "for example 16,32")
        found.append(int(word[:20]))
    return found


def parse(words: Sequence[str]) -> Asked:
    """The words' meaning.

    Raises:
        UsageError: no such key, a value it does not take, or a device without figures.
    """
    values: dict[str, object] = {}
    for word in words:
        key, equals, text = (part.strip() for part in word.partition("="))
        key = key.rsplit(".", 1)[-1] if key != "hardware.name" else "device"
        if not equals or not text:
            raise UsageError(f"`{word}` is not an override", "write key=value, for example micro_batch=64")
        if key in values:
            raise UsageError(f"`{key}` is given twice")
        values[key] = _value(key, text)
    return Asked(**values)  # type: ignore[arg-type]


def _value(key: str, text: str) -> object:
    if key == "device":
        return catalog.device(text).name
    if key in _AMOUNTS:
        return amount(key, text, {"": 1})
    if key in _COUNTS:
        if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
            raise UsageError(f"`{key}` is {text!r}, not a whole number above 0")
        return int(text)
    if key == "zero_stage":
        return _checked(key, TypeAdapter(ZeroStage), int(text) if text.isdigit() else text)
    if key not in _KINDS:
        known = (*_KINDS, *_COUNTS, "zero_stage", "device", *_AMOUNTS)
        near = difflib.get_close_matches(key, known, 1)
        hint = f"is `{near[0]}` meant?" if near else f"what a prediction can change: {', '.join(known)}"
        raise UsageError(f"`{key}` is no key that a prediction knows", hint)
    return _checked(key, _KINDS[key], text)


def _checked(key: str, kind: TypeAdapter[object], value: object) -> object:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise UsageError(f"`{key}` is {value!r}: {error.errors()[0]['msg']}") from None


def chosen(series: Sequence[Series | Refused], name: str) -> Series | Refused:
    """The series of that name.

    Raises:
        UsageError: there is none.
    """
    found = next((one for one in series if one.name == name), None)
    if found is None:
        names = [one.name for one in series]
        near = difflib.get_close_matches(name, names, 3, 0.3) or names[:5]
        raise UsageError(f"there is no series `{name}`", f"for example {', '.join(f'`{one}`' for one in near)}")
    return found


def beyond(series: Series) -> list[int]:
    """World sizes where none are asked for: 2, 4 and 8 times the largest there is."""
    largest = max(one.layout.world_size for one in series.observations)
    return [2 * largest, 4 * largest, 8 * largest]
