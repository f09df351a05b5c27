"""The batch identity `global_batch = micro_batch * grad_accum * data_parallel`, solved for one world size.

What is given and what is solved depends on the protocol; `given_to` says which keys each reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vitscale.errors import Infeasible, UsageError

Solved = Literal["micro_batch", "grad_accum", "global_batch"]


class Batch(NamedTuple):
    """One solution of the identity, in images; `solved` names the member that was not given."""

    micro_batch: int
    grad_accum: int
    global_batch: int
    solved: Solved


class Given(NamedTuple):
    """What the study gives; None is not given."""

    global_batch: int | None = None
    micro_batch: int | None = None
    grad_accum: int | None = None


_SHARED = {"sequence_parallel": "the tokens of each image", "tensor_parallel": "the weights of each block"}


def data_parallel(world_size: int, sequence_parallel: int = 1, tensor_parallel: int = 1) -> int:
    """How many groups of ranks take images of their own, where the ranks of a group share the tokens or the weights.

    Raises:
        Infeasible: the ranks do not fall into such groups, or are to share both.
    """
    if sequence_parallel > 1 and tensor_parallel > 1:
        raise Infeasible(
            f"`sequence_parallel = {sequence_parallel}` with `tensor_parallel = {tensor_parallel}`: ranks share either "
            "the tokens of an image or the weights of a block",
            "sequence_parallel=1, or tensor_parallel=1",
        )
    key = "tensor_parallel" if tensor_parallel > 1 else "sequence_parallel"
    shared = sequence_parallel * tensor_parallel
    groups, left = divmod(world_size, shared)
    if left:
        raise Infeasible(
            f"`{key} = {shared}` does not divide `world_size = {world_size}`: so many ranks share {_SHARED[key]}",
            f"world_size={(groups + 1) * shared}, or {key}=1",
        )
    return groups


def solve(protocol: str, given: Given, data_parallel: int, all_sizes: Sequence[int]) -> Batch:
    """Solve the identity for `data_parallel` ranks.

    Args:
        protocol: `strong`, `strong_fixed_micro` or `weak`.
        given: for `strong`, `global_batch` and at most one of the other two (`grad_accum` is 1 where neither is given,
            and is the one that is read where both are); for the others, `micro_batch` and `grad_accum`.
        data_parallel: ranks that each take their own images.
        all_sizes: every data-parallel size of the study, so that the values suggested fit all of them.

    Raises:
        UsageError: a key the protocol needs is not given.
        Infeasible: the identity has no solution in whole images; the hint has the nearest values that have.
    """
    if protocol != "strong":
        if given.micro_batch is None:
            raise UsageError(f"protocol `{protocol}` needs `micro_batch`", "for example micro_batch=32")
        accum = given.grad_accum or 1
        return Batch(given.micro_batch, accum, given.micro_batch * accum * data_parallel, "global_batch")
    if given.global_batch is None:
        raise UsageError("protocol `strong` needs `global_batch`", "for example global_batch=256")
    by_micro = given.micro_batch is not None and given.grad_accum is None
    key, other = ("micro_batch", given.micro_batch) if by_micro else ("grad_accum", given.grad_accum or 1)
    assert other is not None
    quotient, remainder = divmod(given.global_batch, other * data_parallel)
    if remainder or not quotient:
        raise Infeasible(
            f"`global_batch` {given.global_batch} cannot be divided by `{key}` {other} x {data_parallel} ranks",
            _nearest(given.global_batch, other * math.lcm(*all_sizes, data_parallel)),
        )
    if by_micro:
        return Batch(other, quotient, given.global_batch, "grad_accum")
    return Batch(quotient, other, given.global_batch, "micro_batch")


def _nearest(global_batch: int, unit: int) -> str:
    below = global_batch // unit * unit
    values = [str(value) for value in (below, below + unit) if value]
    return f"nearest `global_batch` that every world size can divide: {' or '.join(values)}"


def given_to(protocol: str, protocols: Sequence[str], given: Given) -> Given:
    """What `protocol` reads of the study's keys where the study has several protocols.

    `micro_batch` then belongs to `weak` and `strong_fixed_micro`, so `strong` reads it only where it is alone.
    """
    if protocol == "strong" and (len(protocols) > 1 or given.grad_accum is not None):
        return given._replace(micro_batch=None)
    return given
