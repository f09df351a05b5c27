"""What communication and waiting cost, a second way: the same steps with the collectives taken out.

Blocks of steps with and without alternate after the steady window. Where a collective is taken out, the same operator
runs in a group of this rank alone: an all-reduce leaves its tensor, an all-gather repeats the own part, a
reduce-scatter and an all-to-all keep it. No engine knows, nothing is sent and nobody is waited for. Weights are of no
use afterwards, so this comes when nobody wants them any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from vitscale.config.runspec import RunSpec
from vitscale.records.schema import Silence
from vitscale.worker.clock import NoClock
from vitscale.worker.comms import BEHIND, IN_FRONT, OPERATIONS
from vitscale.worker.distributed import Ranks, barrier
from vitscale.worker.engines import Engine
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.pipeline import Batches

BLOCKS = ((3, 2), (3, 1), (2, 1), (1, 1))
"""Pairs of blocks, one of each way, and the steps of a block: the first of these that the window is long enough for."""
LARGEST_SHARE = 0.25
"""Of the steady window's steps: so much it is lengthened at most."""


def refusal(spec: RunSpec, steady_steps: int) -> str | None:
    """Why these steps are not taken, where they are not."""
    if spec.world_size == 1:
        return "one rank sends nothing"
    if spec.precision == "fp16":
        return "with gradients of one rank the loss scale would leave steps out"
    fewest = min(_fewest_steps(*one) for one in BLOCKS)
    return f"fewer than {fewest} steady steps" if steady_steps < fewest else None


def blocks(steady_steps: int) -> tuple[int, int]:
    """Pairs of blocks and the steps of one after a window of so many steps, which is not refused."""
    return next(one for one in BLOCKS if _fewest_steps(*one) <= steady_steps)


def measure(
    engine: Engine,
    batches: Batches,
    spec: RunSpec,
    ranks: Ranks,
    steady_steps: int,
    launch: int,
    beat: Callable[[], None] = lambda: None,
) -> Silence:
    """Time blocks of steps with and without collectives. All ranks at once; `beat` is called after each step.

    Which way comes first alternates from pair to pair and from launch to launch: drift is not on one side alone. What
    opening the images takes is on neither.
    """
    next(batches)
    pairs, steps = blocks(steady_steps)
    times: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(pairs):
        for silent in (False, True) if (pair + launch) % 2 else (True, False):
            barrier()
            with taken_out() if silent else nullcontext():
                began = time.perf_counter()
                losses = Losses(spec.grad_accum)
                run_steps(range(steps), engine, batches, NoClock(), losses, spec.grad_accum, lambda _step: beat())
                if ranks.device.type == "cuda":
                    torch.cuda.synchronize()
                times[silent].append((time.perf_counter() - began) / steps)
    return Silence(blocks=pairs, step_s=median(times[False]), silent_step_s=median(times[True]))


def _fewest_steps(pairs: int, steps: int) -> int:
    """Of the steady window, for so many blocks."""
    return round(2 * pairs * steps / LARGEST_SHARE)


@contextmanager
def taken_out() -> Iterator[None]:
    """Collectives of every group stay within this rank."""
    own_group = alone().boxed()
    library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    for name in OPERATIONS:
        library.impl(name, _kernel(getattr(torch.ops.c10d, name).default, name, own_group), IN_FRONT, with_keyset=True)
    try:
        yield
    finally:
        library._destroy()


@cache
def alone() -> Any:
    """The group of this rank alone. The first call is all ranks' at once: MPI makes no group of a part of them."""
    if dist.get_backend() == "mpi":
        return [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    return dist.new_group([dist.get_rank()], use_local_synchronization=True)


def _kernel(operator: Any, name: str, own_group: Any) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]
    group_at, root_at = names.index("process_group"), names.index("root_rank") if "root_rank" in names else None
    local = _LOCAL.get(name)

    def kernel(keys: Any, *arguments: Any) -> Any:
        group = dist.ProcessGroup.unbox(arguments[group_at])
        own = list(arguments)
        own[group_at] = own_group
        if root_at is not None:
            own[root_at] = 0
        with torch.no_grad():
            own = own if local is None else local(own, group.rank(), group.size())
        returned = operator.redispatch(keys & BEHIND, *own)
        return (arguments[0], *returned[1:]) if isinstance(returned, tuple) else returned

    return kernel


def _gather(arguments: list[Any], rank: int, size: int) -> list[Any]:
    output, sent, *rest = arguments
    parts = output.view(size, -1)
    parts.copy_(sent.reshape(1, -1).expand_as(parts))
    return [output.chunk(size)[rank], sent, *rest]


def _gather_lists(arguments: list[Any], rank: int, _size: int) -> list[Any]:
    outputs, sent, *rest = arguments
    for tensors, own in zip(outputs, sent, strict=True):
        for tensor in tensors:
            tensor.copy_(own)
    return [[[tensors[rank]] for tensors in outputs], sent, *rest]


def _gather_by_rank(arguments: list[Any], rank: int, _size: int) -> list[Any]:
    outputs, sent, *rest = arguments
    for tensors in outputs:
        for tensor, own in zip(tensors, sent, strict=True):
            tensor.copy_(own)
    return [[outputs[rank]], sent, *rest]


def _gather_many(arguments: list[Any], rank: int, size: int) -> list[Any]:
    outputs, sent, *rest = arguments
    own = [_gather([output, one], rank, size)[0] for output, one in zip(outputs, sent, strict=True)]
    return [own, sent, *rest]


def _scatter(arguments: list[Any], rank: int, size: int) -> list[Any]:
    output, sent, *rest = arguments
    return [output, sent.chunk(size)[rank], *rest]


def _scatter_lists(arguments: list[Any], rank: int, _size: int) -> list[Any]:
    outputs, sent, *rest = arguments
    return [outputs, [[tensors[rank]] for tensors in sent], *rest]


def _scatter_many(arguments: list[Any], rank: int, size: int) -> list[Any]:
    outputs, sent, *rest = arguments
    return [outputs, [one.chunk(size)[rank] for one in sent], *rest]


def _exchange(arguments: list[Any], _rank: int, _size: int) -> list[Any]:
    output, sent, group, _outputs, _inputs, *rest = arguments
    rows = min(len(output), len(sent))
    output[rows:].zero_()
    return [output[:rows], sent[:rows], group, [], [], *rest]


def _exchange_lists(arguments: list[Any], rank: int, _size: int) -> list[Any]:
    outputs, sent, *rest = arguments
    return [[outputs[rank]], [sent[rank]], *rest]


_LOCAL: dict[str, Callable[[list[Any], int, int], list[Any]]] = {
    "allgather_": _gather_lists,
    "allgather_coalesced_": _gather_by_rank,
    "allgather_into_tensor_coalesced_": _gather_many,
    "_allgather_base_": _gather,
    "reduce_scatter_": _scatter_lists,
    "reduce_scatter_tensor_coalesced_": _scatter_many,
    "_reduce_scatter_base_": _scatter,
    "alltoall_": _exchange_lists,
    "alltoall_base_": _exchange,
}
"""What is left of an operator's arguments for one rank; the others work as they are."""
