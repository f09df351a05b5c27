"""`deepspeed-log`: the timer lines of `wall_clock_breakdown`, of any number of ranks and files, as step lines.

A file is one run, or several one after another: DeepSpeed's first line begins a new one. Files of one folder that tell
the same settings and no rank twice are the ranks of one run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vitscale.config.imported import ImportedSpec
from vitscale.importers import deepspeed_lines as grammar
from vitscale.importers.deepspeed_steps import WARMUP_STEPS, RankTimings, step_records
from vitscale.importers.found import FoundRun, Reading, Tally, series_of
from vitscale.importers.source import Source, lines, plain
from vitscale.records.schema import Aggregate, StepRecord

FORMAT = "deepspeed-log"


@dataclass
class _Section:
    """One run, as far as one file tells of it."""

    source: Source
    line: int
    settings: dict[str, str] = field(default_factory=dict)
    ranks: dict[int, RankTimings] = field(default_factory=dict)
    version: str | None = None
    memory_bytes: int | None = None
    further: list[Source] = field(default_factory=list)
    """Files of further ranks."""

    def joins(self, other: _Section) -> bool:
        """Whether the other is of further ranks of this run."""
        same = all(self.settings.get(key, value) == value for key, value in other.settings.items())
        return same and self.source != other.source and not self.ranks.keys() & other.ranks.keys()


def read(files: Sequence[Source]) -> Reading:
    """Every run in the files."""
    reading = Reading()
    sections: list[_Section] = []
    for source in files:
        tally = Tally(source.name, source.sha256)
        reading.tallies.append(tally)
        for section in _sections(source, tally):
            folder = section.source.path.parent
            same = [one for one in sections if one.source.path.parent == folder and one.joins(section)]
            if same:
                _join(same[0], section)
            else:
                sections.append(section)
    tallies = {tally.file: tally for tally in reading.tallies}
    for section in sections:
        tally = tallies[section.source.name]
        run = _run(section, tally)
        reading.runs += [run] if run else []
    return reading


def _sections(source: Source, tally: Tally) -> Iterator[_Section]:
    section = _Section(source, 1)
    for number, raw in lines(source):
        tally.lines = number
        if grammar.FIRST_LINE in raw:
            if section.ranks:
                yield section
                section = _Section(source, number)
            section.version = grammar.version(raw) or section.version
            tally.read += 1
        elif grammar.TIMERS in raw:
            _take_timings(section, tally, plain(raw))
        elif "MaxMemAllocated=" in raw:
            told = grammar.memory_bytes(raw)
            section.memory_bytes = max(section.memory_bytes or 0, told or 0) or None
            tally.read += 1
        elif any(mark in raw for mark in grammar.SETTINGS):
            found = dict(grammar.settings(plain(raw)))
            section.settings |= {key: value for key, value in found.items() if value != "None"}
            tally.read += bool(found)
    if section.ranks:
        yield section


def _take_timings(section: _Section, tally: Tally, line: str) -> None:
    found = list(grammar.timings(line))
    sound = [timing for timing in found if timing is not None]
    for timing in sound:
        section.ranks.setdefault(timing.rank, RankTimings()).add(timing)
    if len(sound) == len(found) and found:
        tally.read += 1
    elif not grammar.other_timers(line):
        tally.damaged += 1
        for timings in section.ranks.values():
            timings.cut()


def _join(section: _Section, other: _Section) -> None:
    section.further.append(other.source)
    section.ranks |= other.ranks
    section.settings = other.settings | section.settings
    section.version = section.version or other.version
    section.memory_bytes = max(section.memory_bytes or 0, other.memory_bytes or 0) or None


def _run(section: _Section, tally: Tally) -> FoundRun | None:
    told = _counts(section.settings)
    world_size = told.get("world_size") or (max(section.ranks) + 1 if len(section.ranks) > 1 else None)
    if world_size is None:
        tally.remarks.append(
            f"line {section.line}: a run whose world size nothing tells is left out; put its figures into a table"
        )
        return None
    notes = {"step_s": "", "comm_exposed": _NOT_APART, "wait": _NOT_APART}
    seen = {timings.grad_accum for timings in section.ranks.values()}
    shown = seen.pop() if len(seen) == 1 else None
    grad_accum = told.get("gradient_accumulation_steps") or shown
    if grad_accum and not told.get("gradient_accumulation_steps"):
        notes["grad_accum"] = f"by the records: {grad_accum} of micro-steps before each of a step"
    micro_batch = told.get("train_micro_batch_size_per_gpu")
    global_batch = told.get("train_batch_size")
    if global_batch is None and micro_batch and grad_accum and told.get("world_size"):
        # DeepSpeed asserts this identity of its own `world_size`, which counts data-parallel ranks.
        global_batch = micro_batch * grad_accum * told["world_size"]
        notes["global_batch"] = "micro-batch x accumulation x world size, as DeepSpeed holds it"
    per_rank = micro_batch * grad_accum if micro_batch and grad_accum else None
    records: list[StepRecord] = []
    by_clock = 0
    for rank, timings in sorted(section.ranks.items()):
        steps = step_records(rank, timings, grad_accum or 1, per_rank)
        records += steps.records
        by_clock += steps.by_clock
    notes["step_s"] = _derivation(by_clock, len(records))
    if section.further:
        notes["further_files"] = "; ".join(f"{one.name} {one.sha256}" for one in section.further)
    spec = _spec(section, world_size, told, micro_batch, grad_accum, global_batch)
    return FoundRun(
        spec,
        Aggregate(device_memory_used_bytes=section.memory_bytes) if section.memory_bytes else None,
        tuple(records),
        versions={"deepspeed": section.version} if section.version else {},
        notes=notes,
    )


def _counts(words: dict[str, str]) -> dict[str, int]:
    """Settings that are whole numbers; 0 is a ZeRO stage and nothing else."""
    told = {key: int(value) for key, value in words.items() if value.isascii() and value.isdigit() and len(value) < 16}
    stages = ("zero_optimization_stage", "zero_config")
    return {key: value for key, value in told.items() if (0 <= value <= 3 if key in stages else value > 0)}


def _spec(
    section: _Section,
    world_size: int,
    told: dict[str, int],
    micro_batch: int | None,
    grad_accum: int | None,
    global_batch: int | None,
) -> ImportedSpec:
    words = section.settings
    stage = told.get("zero_optimization_stage", told.get("zero_config"))
    if stage is None and words.get("zero_enabled") == "False":
        stage = 0
    precision, optimizer = _precision(words), words.get("optimizer_name")
    zero = None if stage is None else f"zero_stage {stage}"
    micro = None if micro_batch is None else f"micro_batch {micro_batch}"
    return ImportedSpec(
        format=FORMAT,
        series=series_of(FORMAT, zero, precision, optimizer, micro),
        world_size=world_size,
        engine="deepspeed",
        zero_stage=stage,
        precision=precision,
        optimizer=optimizer,
        micro_batch=micro_batch,
        grad_accum=grad_accum,
        global_batch=global_batch,
        file=section.source.name,
        line=section.line,
        sha256=section.source.sha256,
        row=dict(sorted(words.items())),
    )


def _precision(words: dict[str, str]) -> str | None:
    told = {}
    for name, keys in {
        "fp16": ("fp16_enabled", "float16_enabled", "float16_config"),
        "bf16": ("bf16_enabled", "bfloat16_enabled", "bfloat16_config"),
    }.items():
        told[name] = next((words[key] for key in keys if key in words), None)
    on = [name for name, value in told.items() if value == "True"]
    if on:
        return on[0]
    return "fp32" if set(told.values()) == {"False"} else None


_NOT_APART = "DeepSpeed's all-reduce timer holds waiting for the slowest rank too: both are in `comm_and_wait`"


def _derivation(by_clock: int, steps: int) -> str:
    return (
        f"host timers; of {by_clock:,} of {steps:,} step lines from the end of one step to the end of the next by the "
        f"log's clock, of the rest the sum of the timed parts; the first {WARMUP_STEPS} steps are warm-up"
    )
