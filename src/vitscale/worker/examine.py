"""The round of `vitscale doctor`: what this host is, then clocks, the shared folder and links of all ranks together."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from vitscale.config.runspec import RunSpec
from vitscale.hardware.host import examine_host
from vitscale.hardware.interfaces import listening
from vitscale.hardware.position import Position
from vitscale.hardware.probe import Machine
from vitscale.records.examination import EXAMINATION, Examination, Meeting, host_path
from vitscale.records.round import Beat, Heartbeat, Round
from vitscale.records.writer import write_json
from vitscale.worker import links
from vitscale.worker.devices import versions
from vitscale.worker.distributed import Ranks, barrier, clock_offsets, gathered

SEEN_S = 20.0
"""Longest wait for the files of other hosts."""
_POLL_S = 0.01


def write_host(folder: Path, round_: Round, place: Position, machine: Machine) -> None:
    """Write what this host is into the round's folder; the first of its ranks does it, before it meets the others."""
    backend = RunSpec.model_validate(round_.entries[0].spec).torch_backend
    found = examine_host(place.node, round_.device, backend, machine, versions(machine), folder, os.environ)
    write_json(host_path(folder, place.node), found.model_dump(mode="json"))


def examine(folder: Path, round_: Round, ranks: Ranks, heartbeat: Heartbeat) -> None:
    """Look at hosts and links, and write `examination.json` into the round's folder. All ranks call it."""
    specs = [RunSpec.model_validate(entry.spec) for entry in round_.entries]
    heartbeat.beat(Beat(0, "setup", 1, 0, None))
    hosts = _meetings(folder, ranks)
    heartbeat.beat(Beat(0, "setup", 2, 0, None))
    benchmark = links.measure(specs, ranks) if ranks.world_size > 1 else None
    heartbeat.beat(Beat(0, "setup", 3, 0, None))
    pairs = links.pairs(specs, ranks)
    heartbeat.beat(Beat(0, "setup", 4, 0, None))
    inside = links.pairs_inside(specs, ranks)
    barrier()
    if ranks.rank == 0:
        found = Examination(
            backend=specs[0].torch_backend,
            hosts=tuple(hosts),
            between="hosts" if ranks.nodes > 1 else "ranks",
            pairs=tuple(pairs),
            inside=tuple(inside),
            links=benchmark,
        )
        write_json(folder / EXAMINATION, found.model_dump(mode="json"))


def _meetings(folder: Path, ranks: Ranks) -> list[Meeting]:
    """Each host among the others, on every rank."""
    offsets = clock_offsets(ranks, time.time_ns)
    word, speaks = secrets.token_hex(8), ranks.local_rank == 0
    write_s = _write(folder / _word_name(ranks.node), word) if speaks else 0.0
    told = gathered({"word": word, "write_s": write_s, "listens": listening()}, ranks)
    firsts = told[:: ranks.ranks_per_node]
    seen_s, unseen = _seen(folder, [one["word"] for one in firsts]) if speaks else (None, [])
    saw = gathered({"seen_s": seen_s, "unseen": unseen}, ranks)[:: ranks.ranks_per_node]
    if speaks:
        (folder / _word_name(ranks.node)).unlink(missing_ok=True)
    found = []
    for node, (first, sight) in enumerate(zip(firsts, saw, strict=True)):
        own = told[node * ranks.ranks_per_node : (node + 1) * ranks.ranks_per_node]
        offset_s, error_s = offsets[node].seconds
        found.append(
            Meeting(
                node=node,
                clock_offset_s=offset_s,
                clock_error_s=error_s,
                write_s=first["write_s"],
                seen_s=sight["seen_s"],
                unseen=tuple(sight["unseen"]),
                listens=tuple(sorted({one for rank in own for one in rank["listens"]})),
            )
        )
    return found


def _word_name(node: int) -> str:
    return f"word{node:03d}"


def _write(path: Path, text: str) -> float:
    """Write a file through to the disk; how long it took, seconds."""
    began = time.perf_counter()
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - began


def _seen(folder: Path, words: list[str]) -> tuple[float | None, list[int]]:
    """Wait for the files of all hosts; how long it took, else the hosts whose file did not come."""
    began, left = time.perf_counter(), list(range(len(words)))
    while left := [node for node in left if not _reads(folder / _word_name(node), words[node])]:
        if time.perf_counter() - began > SEEN_S:
            return None, left
        time.sleep(_POLL_S)
    return time.perf_counter() - began, []


def _reads(path: Path, word: str) -> bool:
    try:
        return path.read_text() == word
    except OSError:
        return False
