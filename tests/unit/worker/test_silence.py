"""Collectives taken out: an operator leaves this rank's own part, in the shape that a group of four gives it."""

from contextlib import contextmanager
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("steady_steps", "blocks"),
    [(8, (1, 1)), (15, (1, 1)), (16, (2, 1)), (24, (3, 1)), (47, (3, 1)), (48, (3, 2)), (1000, (3, 2))],
)
def test_blocks_are_as_many_as_take_a_quarter_of_the_window(steady_steps, blocks):
    assert silence.blocks(steady_steps) == blocks
    assert 2 * blocks[0] * blocks[1] <= steady_steps / 4


@pytest.mark.parametrize(
    ("ranks", "precision", "steady_steps", "reason"),
    [
        (2, "fp32", 8, None),
        (2, "fp32", 7, "fewer than 8 steady steps"),
        (1, "fp32", 48, "one rank sends nothing"),
        (2, "fp16", 48, "with gradients of one rank the loss scale would leave steps out"),
    ],
)
def test_steps_are_refused_with_the_reason(ranks, precision, steady_steps, reason):
    spec = SimpleNamespace(world_size=ranks, precision=precision)
    assert silence.refusal(spec, steady_steps) == reason


@pytest.fixture
def taken(monkeypatch):
    """Blocks in their order: whether collectives were taken out, and how many steps."""
    found, out = [], []

    @contextmanager
    def taken_out():
        out.append(True)
        yield
        out.pop()

    def run_steps(steps, *_arguments):
        found.append((bool(out), len(steps)))

    monkeypatch.setattr(silence, "barrier", lambda: None)
    monkeypatch.setattr(silence, "taken_out", taken_out)
    monkeypatch.setattr(silence, "run_steps", run_steps)
    return found


@pytest.mark.parametrize(
    ("steady_steps", "launch", "order"),
    [
        (8, 0, [(True, 1), (False, 1)]),
        (8, 1, [(False, 1), (True, 1)]),
        (16, 3, [(False, 1), (True, 1), (True, 1), (False, 1)]),
        (48, 0, [(True, 2), (False, 2), (False, 2), (True, 2), (True, 2), (False, 2)]),
    ],
)
def test_which_way_comes_first_alternates_from_pair_to_pair_and_from_launch_to_launch(
    taken, steady_steps, launch, order
):
    spec, ranks = SimpleNamespace(grad_accum=1), SimpleNamespace(device=torch.device("cpu"))
    assert silence.measure(None, iter([None]), spec, ranks, steady_steps, launch).blocks == len(order) // 2
    assert taken == order
