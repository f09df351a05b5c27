"""A question as `vitscale recommend` takes it, and its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitscale.cost import models
from vitscale.cost.calibrated import beyond
from vitscale.errors import UsageError
from vitscale.predict import from_source, recommended_study
from vitscale.predict.candidates import Candidate, enumerate_candidates, needed, pools
from vitscale.predict.from_source import Source
from vitscale.predict.memory import uncounted
from vitscale.predict.recommend import Limits, Recommendation, Work, recommend

KEYS = ("images", "epochs", "global_batch", "price_per_hour")
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SECONDS = {"": 1, "S": 1, "MIN": 60, "H": 3600, "D": 86400}
_AMOUNT = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)$")


@dataclass(frozen=True)
class Answer:
    """A recommendation with what it stands on."""

    source: Source
    found: Recommendation
    study: str
    """Text of the study file."""
    priced: bool
    """Whether costs are money; else device-hours."""
    assumptions: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        found = self.found
        return {
            "schema_version": 1,
            "model": self.source.shape.name,
            "global_batch": self.source.global_batch,
            "images": self.source.images_per_epoch * self.source.epochs,
            "aim": found.aim,
            "cost_unit": "currency of the price" if self.priced else "device-hours",
            "choice": found.choice.document(),
            "tied": found.tied,
            "front": [one.document() for one in found.front],
            "losers": [one.document() for one in found.losers],
            "assumptions": list(self.assumptions),
            "study": self.study,
        }


def answer(
    target: str,
    words: Sequence[str] = (),
    *,
    memory: str | None = None,
    deadline: str | None = None,
    budget: float | None = None,
    devices: str | None = None,
    target_accuracy: float | None = None,
) -> Answer:
    """Recommend for a results folder or a model.

    Raises:
        UsageError: what cannot be read or meant, or limits that nothing keeps.
    """
    given = parse(words)
    memory_bytes = None if memory is None else round(amount("memory", memory, _BYTES))
    limits = Limits(None if deadline is None else amount("deadline", deadline, _SECONDS), budget)
    source = _source(target, given, target_accuracy)
    price = given.get("price_per_hour") or (source.resolved.get("hardware") or {}).get("price_per_hour")
    had = (source.own_pool(memory_bytes, price),) if devices is None else pools(devices, price, memory_bytes)
    priced = all(one.price_per_hour is not None for one in had)
    if budget is not None and not priced:
        raise UsageError("--budget needs prices", "price_per_hour=2.5, or --devices a100x8@2.5,t4x32@0.35")
    if not priced and any(one.price_per_hour is not None for one in had):
        raise UsageError("some devices have a price and some have none", "give each: --devices a100x8@2.5,t4x32@0.35")
    candidates = [one for pool in had for one in enumerate_candidates(pool, source.ways_on(pool), source.global_batch)]
    found = recommend(
        candidates,
        Work(source.images_per_epoch * source.epochs, source.global_batch),
        limits,
        lambda one: needed(one, source.shape, source.optimizer, source.knobs(one.way)),
        from_source.steps_of(source),
    )
    told = list(source.assumptions)
    told += [f"memory of {one.device} is not known: not checked" for one in had if one.memory_bytes is None]
    told += [one.assumption for one in had if one.assumption]
    told += [] if priced else ["no price is told: cost is in device-hours"]
    away = uncounted(source.knobs(found.choice.candidate.way))
    told += [f"memory is counted as if without {', '.join(away)}"] if away else []
    told += _beyond(source, found.choice.candidate)
    study = recommended_study.study_text(found.choice.candidate, source)
    return Answer(source, found, study, priced, tuple(told))


def _beyond(source: Source, choice: Candidate) -> tuple[str, ...]:
    """How far the choice is from what was measured."""
    own = [(one.layout.world_size, one.layout.nodes) for series in source.series for one in series.measured]
    return beyond(own, choice.layout.world_size, choice.layout.nodes)


def _source(target: str, given: dict[str, float], target_accuracy: float | None) -> Source:
    if Path(target).is_dir():
        return from_source.of_results(Path(target), given, target_accuracy)
    if target not in models.names() and ("/" in target or Path(target).exists()):
        raise UsageError(f"`{target}` is no results folder")
    if target_accuracy is not None:
        raise UsageError("how long a model takes to an accuracy is not known before it was trained", "epochs=300")
    return from_source.of_model(target, given)


def parse(words: Sequence[str]) -> dict[str, float]:
    """Read `key=value`.

    Raises:
        UsageError: no such key, or no number above 0.
    """
    found: dict[str, float] = {}
    for word in words:
        key, _, text = (part.strip() for part in word.partition("="))
        key = key.rsplit(".", 1)[-1]
        if key not in KEYS:
            raise UsageError(f"`{key}` is no key that a recommendation knows", f"known: {', '.join(KEYS)}")
        found[key] = amount(key, text, {"": 1})
        if key in ("images", "global_batch") and found[key] != int(found[key]):
            raise UsageError(f"`{key}` is {text!r}, not a whole number")
    return found


def amount(name: str, text: str, units: dict[str, int]) -> float:
    """Read a number above 0 with a unit.

    Raises:
        UsageError: it is none.
    """
    parts = _AMOUNT.match(text.strip())
    if parts is None or parts[2].upper() not in units or not 0 < float(parts[1]) < 1e15:
        known = ", ".join(unit for unit in units if unit)
        raise UsageError(f"`{name}` is {text!r}, not a number above 0" + (f" in {known}" if known else ""))
    return float(parts[1]) * units[parts[2].upper()]
