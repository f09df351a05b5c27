"""What the link gives when nothing else uses it: collectives of the round's own sizes, before its first launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from vitscale.config.runspec import RunSpec
from vitscale.cost.collectives import Links, bus_factor
from vitscale.cost.run import Machinery, estimate_run
from vitscale.records.examination import PairTiming
from vitscale.records.links import LINKS, LinkBenchmark, Timing
from vitscale.records.round import Round
from vitscale.records.writer import write_json
from vitscale.worker.devices import return_memory
from vitscale.worker.distributed import Ranks, barrier, gathered, largest, start_maximum

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
EXCHANGE = "all_to_all"
BUDGET_S = 2.0
"""When this much is spent, nothing further is begun."""
REPEATS = 9
LATENCY_CALLS = 20
_ITEM_BYTES = 4  # fp32


def record(folder: Path, round_: Round, ranks: Ranks) -> None:
    """Time the links of a round and write `links.json` into its folder. All ranks call it."""
    links = measure([RunSpec.model_validate(entry.spec) for entry in round_.entries], ranks)
    return_memory(ranks.device)
    if ranks.rank == 0:
        write_json(folder / LINKS, links.model_dump(mode="json"))


def measure(specs: list[RunSpec], ranks: Ranks) -> LinkBenchmark:
    """Time the links with collectives as large as the runs' own. All ranks call it.

    Args:
        specs: runs of one world size, above 1.
        ranks: this rank among the others.
    """
    began = time.perf_counter()
    one = torch.zeros(1, device=ranks.device)
    latencies_s = _timed(lambda: dist.all_reduce(one), LATENCY_CALLS, ranks)
    asked = calls(specs, ranks.world_size)
    timings: list[Timing] = []
    for operation, size in asked:
        left_s = BUDGET_S - largest(time.perf_counter() - began, ranks.device)
        if left_s <= 0:
            break
        timings.append(_timing(operation, size, left_s / (len(asked) - len(timings)), ranks))
    return LinkBenchmark(
        world_size=ranks.world_size,
        nodes=specs[0].nodes,
        backend=dist.get_backend(),
        link=specs[0].link,
        device=torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else None,
        latency_s=statistics.median(latencies_s),
        timings=tuple(timings),
        left_out=len(asked) - len(timings),
    )


PAIR_S = 1.0
"""About how long one transfer may take: over a slow link less is sent."""
PAIR_REPEATS = 3
_FIRST_BYTES = 1 << 16


def pairs(specs: list[RunSpec], ranks: Ranks) -> list[PairTiming]:
    """Time what every pair of hosts sends, of a single host every pair of ranks. All ranks call it, and all know."""
    step = ranks.ranks_per_node if ranks.nodes > 1 else 1
    return _among([range(0, ranks.world_size, step)], step, specs, ranks)


def pairs_inside(specs: list[RunSpec], ranks: Ranks) -> list[PairTiming]:
    """Of several hosts, time what every pair of ranks within one sends. All ranks call it, and all know."""
    each = ranks.ranks_per_node
    if ranks.nodes == 1 or each == 1:
        return []
    return _among([range(first, first + each) for first in range(0, ranks.world_size, each)], 1, specs, ranks)


def _among(groups: Sequence[range], step: int, specs: list[RunSpec], ranks: Ranks) -> list[PairTiming]:
    """Time every pair of each group; groups at the same time.

    Pairs without a common member go at the same time, so that `n` members need `n` turns at most.

    Args:
        groups: ranks, as many in each.
        step: what their ranks are divided by to have the numbers that pairs are named by.
        specs: runs of one world size.
        ranks: this rank among the others.
    """
    own = next((group for group in groups if ranks.rank in group), None)
    largest_bytes = max((size for _, size in calls(specs, ranks.world_size)), default=_FIRST_BYTES)
    found: list[PairTiming] = []
    for turn in turns(len(groups[0])):
        barrier()
        met = [(own[a], own[b]) for a, b in turn] if own is not None else []
        for a, b in met:
            if ranks.rank in (a, b):
                timing = _pair_timing((a // step, b // step), a + b - ranks.rank, largest_bytes, ranks)
                found += [timing] if ranks.rank == a else []
    told = gathered({"pairs": [one.model_dump(mode="json") for one in found]}, ranks)
    everyone = [PairTiming.model_validate(one) for document in told for one in document["pairs"]]
    return sorted(everyone, key=lambda one: (one.a, one.b))


def turns(count: int) -> list[list[tuple[int, int]]]:
    """Every pair of `count` members once, in turns in which nobody has two partners: the circle method."""
    members: list[int | None] = [*range(count), *([None] if count % 2 else [])]
    found = []
    for _ in range(len(members) - 1):
        half = len(members) // 2
        couples = zip(members[:half], members[::-1][:half], strict=True)
        found.append([(min(a, b), max(a, b)) for a, b in couples if a is not None and b is not None])
        members = [members[0], members[-1], *members[1:-1]]
    return found


def _pair_timing(pair: tuple[int, int], peer: int, largest_bytes: int, ranks: Ranks) -> PairTiming:
    """Time what this rank and another send; both agree on the size by the time of a small one."""
    few = min(_FIRST_BYTES, largest_bytes)
    for _ in range(2):  # the first connects
        there_s, back_s = _both_ways(few, 1, peer, ranks)
    size = min(largest_bytes, max(few, int(PAIR_S / max(*there_s, *back_s) * few))) // _ITEM_BYTES * _ITEM_BYTES
    there_s, back_s = _both_ways(size, PAIR_REPEATS, peer, ranks)
    rate = size / max(statistics.median(there_s), statistics.median(back_s))
    return PairTiming(a=pair[0], b=pair[1], bytes=size, there_s=there_s, back_s=back_s, bytes_per_s=rate)


def _both_ways(size: int, repeats: int, peer: int, ranks: Ranks) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of each transfer from the lower rank to the higher, and of each from the higher to the lower."""
    payload = torch.zeros(size // _ITEM_BYTES, device=ranks.device)
    received = torch.zeros(1, device=ranks.device)
    times_s = torch.zeros(2, repeats, dtype=torch.float64, device=ranks.device)
    for way, sender in enumerate(sorted((ranks.rank, peer))):
        for number in range(repeats):
            began = time.perf_counter()
            if ranks.rank == sender:
                dist.send(payload, peer)
                dist.recv(received, peer)
            else:
                dist.recv(payload, peer)
                dist.send(received, peer)
            _finish(ranks)
            times_s[way, number] = time.perf_counter() - began
        if ranks.rank == sender:  # the other one began to wait some time before
            dist.send(times_s[way], peer)
        else:
            dist.recv(times_s[way], peer)
    there_s, back_s = times_s.tolist()
    return tuple(there_s), tuple(back_s)


def calls(specs: Iterable[RunSpec], world_size: int) -> list[tuple[str, int]]:
    """What is timed: operations and bytes of a call, rounded up to what all ranks divide.

    An all-to-all is timed at the sizes that runs send by it, the others at the sizes of all else. A size is the mean
    one of a run's calls, by the closed form.
    """
    grain = _ITEM_BYTES * world_size
    found: dict[bool, set[int]] = {True: set(), False: set()}
    for spec in specs:
        for one in estimate_run(spec, Machinery(None, Links(None, None), None)).collectives:
            if one.calls:
                found[one.operation == EXCHANGE].add(-(-(one.bytes // one.calls) // grain) * grain)
    exchanged, others = (sorted(found[kind]) for kind in (True, False))
    asked = [(operation, others) for operation in OPERATIONS]
    asked.insert(1, (EXCHANGE, exchanged))
    return [(operation, size) for operation, of_it in asked for size in of_it]


def _timing(operation: str, size: int, share_s: float, ranks: Ranks) -> Timing:
    """As many calls as fit in `share_s` after one that does not count."""
    call = _call(operation, size, ranks)
    first_s = _timed(call, 1, ranks)[0]
    times_s = _timed(call, min(max(int(share_s / first_s) - 1, 1), REPEATS), ranks)
    rate = size / statistics.median(times_s)
    return Timing(
        operation=operation,
        bytes=size,
        times_s=tuple(times_s),
        algorithm_bytes_per_s=rate,
        bus_bytes_per_s=rate * bus_factor(operation, ranks.world_size),
    )


def _call(operation: str, size: int, ranks: Ranks) -> Callable[[], object]:
    """A collective of `size` bytes over all ranks."""
    whole = torch.zeros(size // _ITEM_BYTES, device=ranks.device)
    part = torch.zeros(size // _ITEM_BYTES // ranks.world_size, device=ranks.device)
    received = torch.zeros_like(whole) if operation == EXCHANGE else whole
    by_name: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        EXCHANGE: lambda: dist.all_to_all_single(received, whole),
    }
    return by_name[operation]


def _timed(call: Callable[[], object], repeats: int, ranks: Ranks) -> list[float]:
    """Seconds of each call by the slowest rank; all ranks begin together."""
    times_s = torch.zeros(repeats, dtype=torch.float64, device=ranks.device)
    for number in range(repeats):
        barrier()
        _finish(ranks)
        began = time.perf_counter()
        call()
        _finish(ranks)
        times_s[number] = time.perf_counter() - began
    start_maximum(times_s).wait()
    return [float(one) for one in times_s.tolist()]


def _finish(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
