"""Collectives taken out: an operator leaves this rank's own part, in the shape that a group of four gives it."""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitscale.worker import silence
from vitscale.worker.comms import OPERATIONS

SIZE, RANK = 4, 1
SENT = tuple(float(value) for value in range(3 * SIZE))
OWN = SENT[3 * RANK : 3 * RANK + 3]
"""What of `SENT` is this rank's."""
GROUP, SUM = object(), object()
"""Stand for the group and for the reduction in `CALLS`."""


@pytest.fixture
def group(monkeypatch):
    """Four ranks of which this is the second, and nobody is there but this one."""
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=SIZE)
    own = dist.new_group([RANK], backend="gloo", use_local_synchronization=True)
    monkeypatch.setattr(silence, "alone", lambda: own)
    yield dist.group.WORLD
    dist.destroy_process_group()


def whole():
    return torch.tensor(SENT)


def part():
    return torch.tensor(OWN)


def parts():
    return [*whole().chunk(SIZE)]


def nothing(count):
    return torch.full((count,), -1.0)


def nothings():
    return [nothing(3) for _ in range(SIZE)]


# Operator -> its arguments as torch.distributed makes them, and what the first of them holds afterwards.
CALLS = {
    "allreduce_": (lambda: ([part()], GROUP, SUM, None), [OWN]),
    "allreduce_coalesced_": (lambda: ([part(), part()], GROUP, SUM), [OWN, OWN]),
    "allgather_": (lambda: ([nothings()], [part()], GROUP), [[OWN] * SIZE]),
    "allgather_coalesced_": (  # its outputs are by rank first
        lambda: ([[nothing(3), nothing(2)] for _ in range(SIZE)], [part(), part()[:2]], GROUP),
        [[OWN, OWN[:2]]] * SIZE,
    ),
    "allgather_into_tensor_coalesced_": (
        lambda: ([nothing(12), nothing(12)], [part(), part()], GROUP),
        [OWN * SIZE, OWN * SIZE],
    ),
    "_allgather_base_": (lambda: (nothing(12), part(), GROUP), OWN * SIZE),
    "reduce_scatter_": (lambda: ([nothing(3)], [parts()], GROUP, SUM), [OWN]),
    "reduce_scatter_tensor_coalesced_": (
        lambda: ([nothing(3), nothing(3)], [whole(), whole()], GROUP, SUM),
        [OWN, OWN],
    ),
    "_reduce_scatter_base_": (lambda: (nothing(3), whole(), GROUP, SUM), OWN),
    "alltoall_": (lambda: (nothings(), parts(), GROUP), [(-1.0,) * 3, OWN, (-1.0,) * 3, (-1.0,) * 3]),
    "alltoall_base_": (lambda: (nothing(12), whole(), GROUP, [], []), SENT),
    "broadcast_": (lambda: ([part()], GROUP, 2, 0), [OWN]),
    "reduce_": (lambda: ([part()], GROUP, SUM, 2, 0), [OWN]),
    "barrier": (lambda: (part(), GROUP, []), OWN),
}


def values(held):
    return tuple(held.tolist()) if isinstance(held, torch.Tensor) else [values(one) for one in held]


def called(name, arguments, group):
    """Call an operator; the group and the reduction take the places of what stands for them."""
    boxed = {id(GROUP): group.boxed(), id(SUM): dist.ReduceOp(dist.ReduceOp.SUM).boxed()}
    return getattr(torch.ops.c10d, name)(*(boxed.get(id(one), one) for one in arguments))


def test_no_operator_is_forgotten():
    assert CALLS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_leaves_its_own_part_in_the_shape_of_the_whole_group(group, name):
    make, expected = CALLS[name]
    arguments = make()
    with silence.taken_out():
        returned = called(name, arguments, group)
    work = returned[-1] if isinstance(returned, tuple) else returned
    dist.Work.unbox(work).wait()
    assert values(arguments[0]) == expected
    if isinstance(returned, tuple):  # what an engine goes on with is all that it gave, not this rank's part
        assert values(returned[0]) == expected


def test_of_unequal_exchanges_what_nobody_sent_is_zero(group):
    output, sent = nothing(5), whole()[:3]
    with silence.taken_out():
        work = called("alltoall_base_", (output, sent, GROUP, [1, 2, 1, 1], [1, 1, 1, 0]), group)
    dist.Work.unbox(work).wait()
    assert output.tolist() == [0.0, 1.0, 2.0, 0.0, 0.0]
