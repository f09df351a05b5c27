"""Blind test of the verdict: causes of random kind and size are put into runs of two ranks, and it has to name them.

A quarter of the cases has no cause. Sleeps make the others: of one rank (`straggler`), or of all ranks of two in the
loader (`input`), the passes (`contention`: computing slower than the baseline's) or the update (`optimizer`), in some
cases two at once; and links of a rate that no record names (`communication`). Sizes are log-uniform from 3 % to 100 %
of a clean step. Sleeps are asked for through the ranks' environment, which no record holds: what the verdict reads is
searched for traces of them before it is scored.

A cause is right if the dearest one named is the larger one that was put in, with its rank; its size is the seconds it
is given over the seconds that were put in. What is never drawn is `NEVER`, and all runs are of two ranks on CPUs: links
under DeepSpeed's stage 0, all else under DDP.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

from benchmarks.figure import ROOT, VITSCALE, Failed, Figure, say
from vitscale.analysis.cause import Kind
from vitscale.config.load import load
from vitscale.data.catalog import store_root
from vitscale.hardware.probe import probe
from vitscale.launch.lab import require_namespaces
from vitscale.study import plan
from vitscale.study.where import Where
from vitscale.units import percent, seconds

COMMAND = "python -m benchmarks attribution"
SEED = 20260220
CASES, CLEAN, LINKS, PAIRS = 40, 10, 8, 6
"""In all; without a cause; with a slow link; with two causes at once."""
LEAST, MOST = 0.03, 1.0
"""Of a clean step."""
APART = 1.5
"""The larger of two causes over the other, at least: nearer ones have no right order."""
RIGHT, CLOSE = 0.90, 0.20
"""Of the cases, at least; how far the size of a cause may be off, in as many of those that are right."""
PER_STUDY = 8
"""Cases that share process starts."""
MODEL = {
    "model.name": "vit_tiny_patch16_224", "depth": 2, "embed_dim": 96, "img_size": 32, "patch_size": 4,
    "data.name": "synthetic", "data.images": 4096, "data.flip": "false", "protocol": "weak", "micro_batch": 64,
    "world_size": "1,2", "optimizer.clip": 0, "measure.launches": 3, "warmup_steps": 3, "steps": 16,
}  # fmt: skip
SLEEPS = {"input": ("data",), "contention": ("forward", "backward"), "optimizer": ("optimizer",)}
PLACES = ("data", "forward", "backward", "optimizer")
NEVER = tuple(kind for kind in get_args(Kind) if kind not in ("communication", "straggler", "noise", *SLEEPS))
"""Kinds that are in no case. Noise is no cause either, but may be named."""


class Put(NamedTuple):
    """A cause that is put into a run."""

    kind: str
    where: str
    rank: int | None
    """None: all."""
    share: float
    """Of a clean step."""

    def __str__(self) -> str:
        return f"{self.kind}{_of(self.rank)} in {self.where}, {percent(self.share)}"


def _of(rank: int | None) -> str:
    return "" if rank is None else f" of rank {rank}"


class Scored(NamedTuple):
    """A case and what the verdict made of it."""

    put: tuple[Put, ...]
    expected_s: float
    """Of the larger cause."""
    named: list[dict[str, Any]]
    right: bool
    size: float | None
    """Seconds named over seconds put in, where the cause is right."""
    second: bool | None
    """Whether the smaller one of two is named behind it."""


class Clean(NamedTuple):
    """A step that nothing slows."""

    step_s: float
    data_s: float
    gradient_bytes: int
    """fp32, of the whole model."""


def measure(short: bool) -> list[Figure]:
    """40 cases, of 3 launches each, beside runs of one rank that are not slowed."""
    draw = random.Random(SEED)
    slept = [(), (_one(draw),), _two(draw)] if short else [*drawn(draw)]
    links = [_link(draw) for _ in range(1 if short else LINKS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clean = _clean(folder)
        say(f"  a clean step takes {seconds(clean.step_s)}")
        scored: list[Scored] = []
        for one in itertools.chain(_all_slept(folder, slept, clean), _slow_links(folder, links, clean)):
            say(f"  {len(scored):2}: {_line(one)}")
            scored.append(one)
    return [*figures(scored)]


def drawn(draw: random.Random) -> Iterator[tuple[Put, ...]]:
    """The cases without links, in an order of chance."""
    cases: list[tuple[Put, ...]] = [()] * CLEAN
    cases += [_two(draw) for _ in range(PAIRS)]
    cases += [(_one(draw),) for _ in range(CASES - CLEAN - LINKS - PAIRS)]
    draw.shuffle(cases)
    yield from cases


def _one(draw: random.Random, share: float | None = None) -> Put:
    kind = draw.choice(["straggler", *SLEEPS])
    rank = draw.randrange(2) if kind == "straggler" else None
    where = draw.choice(PLACES if kind == "straggler" else SLEEPS[kind])
    return Put(kind, where, rank, _share(draw) if share is None else share)


def _two(draw: random.Random) -> tuple[Put, ...]:
    """Of two kinds; the larger first."""
    while True:
        larger, smaller = sorted((_one(draw), _one(draw)), key=lambda put: -put.share)
        if larger.kind != smaller.kind and larger.share >= APART * smaller.share:
            return larger, smaller


def _link(draw: random.Random) -> Put:
    return Put("communication", "link", None, _share(draw))


def _share(draw: random.Random) -> float:
    return float(LEAST * (MOST / LEAST) ** draw.random())


def _clean(folder: Path) -> Clean:
    """Two ranks that nothing slows."""
    words = {**MODEL, "engine": "ddp", "world_size": 2, "measure.launches": 2}
    _run([VITSCALE], folder / "clean", words)
    records = [json.loads(line) for path in folder.glob("clean/runs/*/launch*/steps.*") for line in path.open()]
    steady = [one for one in records if one["window"] == "steady"]
    manifest = json.loads(next(folder.glob("clean/runs/*/launch*/manifest.json")).read_text())
    step_s, data_s = (median(one[part] for one in steady) for part in ("step_s", "data_s"))
    return Clean(step_s, data_s, 4 * manifest["parameters"])


def _all_slept(folder: Path, cases: Sequence[tuple[Put, ...]], clean: Clean) -> Iterator[Scored]:
    for first in range(0, len(cases), PER_STUDY):
        yield from _slept(folder / f"slept{first}", cases[first : first + PER_STUDY], clean)


def _slept(folder: Path, cases: Sequence[tuple[Put, ...]], clean: Clean) -> list[Scored]:
    """A study with one run per case: they differ in their seed."""
    say(f"  {len(cases)} cases in {folder.name}")
    words = {**MODEL, "engine": "ddp", "measure.seed": ",".join(map(str, range(len(cases))))}
    run_ids = _run_ids(words)
    sleeps = [
        f"sleep rank={rank} launch={run_ids[seed]} where={put.where} seconds={put.share * clean.step_s:.6f}"
        for seed, case in enumerate(cases)
        for put in case
        for rank in ((0, 1) if put.rank is None else (put.rank,))
    ]
    _run([VITSCALE], folder, words, {"VITSCALE_INJECT": ";".join(sleeps)})
    verdicts = _verdicts(folder)
    # What is counted whole is counted with what it takes in a clean step.
    own = {"input": clean.data_s}
    return [
        _score(case, case[0].share * clean.step_s + own.get(case[0].kind, 0.0) if case else 0.0, verdicts[run_id])
        for case, run_id in zip(cases, run_ids, strict=True)
    ]


def _run_ids(words: dict[str, Any]) -> list[str]:
    """Of the runs of two ranks, in the order of their seeds."""
    loaded = load("quick", [f"{key}={value}" for key, value in words.items()])
    planned = plan.make(loaded, Where(probe()), plan.prepared(store_root(), lambda _line: None))
    pairs = [one for one in planned.grid.runs if one.world_size == 2]
    return [one.run_id for one in sorted(pairs, key=lambda one: one.measure.seed)]


def _slow_links(folder: Path, cases: Sequence[Put], clean: Clean) -> Iterator[Scored]:
    """A study for each link, of one rank per host. DeepSpeed's stage 0 hides nothing of its one all-reduce."""
    require_namespaces()
    words = {**MODEL, "engine": "deepspeed", "zero_stage": 0, "world_size": 2, "nodes": 2}
    for number, put in enumerate(cases):
        say(f"  slow link {number + 1} of {len(cases)}")
        asked_s = put.share * clean.step_s
        kbit_per_s = round(8e-3 * clean.gradient_bytes / (plan.PAYLOAD_SHARE * asked_s))
        out = folder / f"link{number}"
        _run([sys.executable, "-m", "benchmarks.slow_link", f"{kbit_per_s}kbit"], out, words, lab=True)
        (found,) = _verdicts(out).values()
        yield _score((put,), asked_s, found)


def _run(
    program: list[str], out: Path, words: dict[str, Any], environ: dict[str, str] | None = None, *, lab: bool = False
) -> None:
    """Measure, and make sure that no file tells what was put in.

    Raises:
        Failed: it ended badly, or one does.
    """
    given = [f"{key}={value}" for key, value in words.items()]
    command = [*program, "run", "quick", *given, "--out", str(out), *(["--launcher", "lab"] if lab else [])]
    log = out.with_suffix(".log")
    with log.open("wb") as told:
        code = subprocess.run(
            command, cwd=ROOT, env=os.environ | (environ or {}), stdin=subprocess.DEVNULL, stdout=told, stderr=told,
            check=False,
        ).returncode  # fmt: skip
    if code:
        raise Failed(f"`vitscale run` ended with status {code}:\n{log.read_text()[-2000:]}")
    hidden = [word.encode() for word in ("sleep rank", "VITSCALE_INJECT", "kbit", "slow_link")]
    telling = [path for path in out.rglob("*") if path.is_file() and any(word in path.read_bytes() for word in hidden)]
    if telling:
        raise Failed(f"{telling[0].name} tells what was put in")


def _verdicts(out: Path) -> dict[str, list[dict[str, Any]]]:
    """run_id -> causes, the dearest first; settings, which are parts of another, aside."""
    told = json.loads((out / "analysis.json").read_text())["verdicts"]
    return {one["run_id"]: [cause for cause in one["causes"] if cause["within"] is None] for one in told}


def _score(put: tuple[Put, ...], expected_s: float, named: list[dict[str, Any]]) -> Scored:
    if not put:
        # A machine that is noisy may be called so.
        return Scored(put, 0.0, named, all(one["kind"] == "noise" for one in named), None, None)
    right = bool(named) and _is(named[0], put[0])
    size = named[0]["seconds"]["median"] / expected_s if right else None
    second = any(_is(one, put[1]) for one in named[1:]) if len(put) > 1 else None
    return Scored(put, expected_s, named, right, size, second)


def _is(named: dict[str, Any], put: Put) -> bool:
    return bool(named["kind"] == put.kind and named["rank"] == put.rank)


def _line(one: Scored) -> str:
    """For docs/log.md."""
    put = " and ".join(map(str, one.put)) or "nothing"
    named = ", ".join(
        f"{cause['kind']}{_of(cause['rank'])} {seconds(cause['seconds']['median'])} ({percent(cause['share'])})"
        for cause in one.named
    )
    size = "" if one.size is None else f", {one.size:.2f} of {seconds(one.expected_s)}"
    return f"{'right' if one.right else 'WRONG'}{size} | put in: {put} | named: {named or 'nothing'}"


def figures(scored: Sequence[Scored]) -> Iterator[Figure]:
    """How often the verdict was right, and how near its sizes were."""
    never = f"never drawn: {', '.join(NEVER)}"
    yield _hits("cases judged right", [one.right for one in scored], RIGHT, never)
    yield _hits("top cause right, of cases with a cause", [one.right for one in scored if one.put], RIGHT)
    sizes = [one.size for one in scored if one.size is not None]
    yield _hits(
        f"size within {CLOSE:.0%}, of causes that are right",
        [abs(size - 1) <= CLOSE for size in sizes],
        RIGHT,
        f"median {median(sizes):.2f}, {min(sizes):.2f} to {max(sizes):.2f}" if sizes else "",
    )
    yield _hits("nothing named where nothing was put in", [one.right for one in scored if not one.put], None)
    yield _hits("smaller of two causes named too", [one.second for one in scored if one.second is not None], None)
    for kind in sorted({one.put[0].kind for one in scored if one.put}):
        yield _hits(
            f"top cause right: {kind}", [one.right for one in scored if one.put and one.put[0].kind == kind], None
        )


def _hits(name: str, hits: Sequence[bool], target: float | None, note: str = "") -> Figure:
    share = sum(hits) / len(hits) if hits else 0.0
    wanted, met = ("", None) if target is None else (f">= {target:.0%}", share >= target)
    return Figure(name, f"{share:.0%}", f"{sum(hits)} of {len(hits)}", wanted, met, COMMAND, note)
