import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.config.batch import Given, data_parallel, given_to, solve
from vitscale.errors import Infeasible, UsageError

size = st.integers(1, 4096)
ranks = st.integers(1, 512)
sizes = st.lists(st.integers(1, 64), min_size=1, max_size=5, unique=True)


def identity_holds(batch, data_parallel):
    return batch.global_batch == batch.micro_batch * batch.grad_accum * data_parallel and min(batch[:3]) > 0


@given(
    protocol=st.sampled_from(["weak", "strong_fixed_micro"]), micro=size, accum=st.none() | size, data_parallel=ranks
)
def test_a_fixed_micro_batch_makes_the_global_batch_grow_with_the_ranks(protocol, micro, accum, data_parallel):
    batch = solve(protocol, Given(None, micro, accum), data_parallel, [data_parallel])
    assert identity_holds(batch, data_parallel)
    assert batch == (micro, accum or 1, micro * (accum or 1) * data_parallel, "global_batch")


@given(
    total=st.integers(1, 100_000),
    micro=st.none() | st.integers(1, 64),
    accum=st.none() | st.integers(1, 64),
    all_sizes=sizes,
    data=st.data(),
)
def test_strong_keeps_the_global_batch_or_says_which_ones_every_world_size_can_divide(
    total, micro, accum, all_sizes, data
):
    data_parallel = data.draw(st.sampled_from(all_sizes))
    try:
        batch = solve("strong", Given(total, micro, accum), data_parallel, all_sizes)
    except Infeasible as error:
        suggested = [int(value) for value in re.findall(r"\d+", error.hint)]
    else:
        assert identity_holds(batch, data_parallel)
        assert batch.global_batch == total
        assert batch.solved == ("grad_accum" if micro and not accum else "micro_batch")
        if batch.solved == "grad_accum":
            assert batch.micro_batch == micro
        else:
            assert batch.grad_accum == (accum or 1)
        return
    assert suggested
    for value in suggested:
        for other in all_sizes:
            assert identity_holds(solve("strong", Given(value, micro, accum), other, all_sizes), other)


def test_the_suggestions_are_the_nearest_below_and_above():
    with pytest.raises(Infeasible) as caught:
        solve("strong", Given(global_batch=100), 8, [1, 2, 3, 8])
    assert caught.value.message == "`global_batch` 100 cannot be divided by `grad_accum` 1 x 8 ranks"
    assert caught.value.hint.endswith("96 or 120")


def test_a_batch_smaller_than_its_ranks_is_offered_no_zero():
    with pytest.raises(Infeasible) as caught:
        solve("strong", Given(global_batch=3), 4, [4])
    assert caught.value.hint.endswith("divide: 4")


@pytest.mark.parametrize(
    ("protocol", "given_keys", "wanted"),
    [
        ("strong", Given(micro_batch=4), "`global_batch`"),
        ("weak", Given(global_batch=64), "`micro_batch`"),
        ("strong_fixed_micro", Given(global_batch=64, grad_accum=2), "`micro_batch`"),
    ],
)
def test_a_protocol_without_the_key_it_reads_is_refused_with_an_example(protocol, given_keys, wanted):
    with pytest.raises(UsageError, match=f"`{protocol}` needs {wanted}") as caught:
        solve(protocol, given_keys, 2, [2])
    assert not isinstance(caught.value, Infeasible)
    assert "=" in caught.value.hint


def test_each_protocol_of_several_reads_its_own_keys():
    both = Given(global_batch=64, micro_batch=24, grad_accum=None)
    assert given_to("strong", ["strong", "weak"], both) == Given(64, None, None)
    assert given_to("weak", ["strong", "weak"], both).micro_batch == 24
    assert solve("strong", given_to("strong", ["strong", "weak"], both), 2, [1, 2]) == (32, 1, 64, "micro_batch")


def test_strong_alone_reads_micro_batch_unless_grad_accum_is_given():
    alone = Given(global_batch=64, micro_batch=8)
    assert solve("strong", given_to("strong", ["strong"], alone), 2, [2]) == (8, 4, 64, "grad_accum")
    with_both = alone._replace(grad_accum=2)
    assert solve("strong", given_to("strong", ["strong"], with_both), 2, [2]) == (16, 2, 64, "micro_batch")


@given(groups=ranks, shared=ranks)
def test_ranks_that_share_an_image_count_once(groups, shared):
    assert data_parallel(groups * shared, shared) == groups
    assert data_parallel(groups * shared, tensor_parallel=shared) == groups


@pytest.mark.parametrize(("world_size", "shared", "hint"), [(1, 2, "world_size=2"), (4, 3, "world_size=6")])
def test_sequence_ranks_that_do_not_divide_the_world_are_refused(world_size, shared, hint):
    with pytest.raises(Infeasible, match=f"`sequence_parallel = {shared}` does not divide") as refused:
        data_parallel(world_size, shared)
    assert refused.value.hint.startswith(hint)
    with pytest.raises(Infeasible, match="ranks share the weights of each block") as refused:
        data_parallel(world_size, tensor_parallel=shared)
    assert refused.value.hint.startswith(hint)
