"""Gradients averaged beside backward, on a process group of two that sends nothing: sums are the rank's own."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitscale.worker.engines import reducer
from vitscale.worker.engines.deepspeed import DeepSpeedEngine
from vitscale.worker.engines.reducer import Reducer

INPUT = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def group():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.fixture
def layers(monkeypatch):
    """Three layers, each a bucket."""
    monkeypatch.setattr(reducer, "FIRST_BUCKET_BYTES", 256)
    monkeypatch.setattr(reducer, "BUCKET_BYTES", 256)
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))


@pytest.fixture
def sent(layers, monkeypatch):
    """Elements of each bucket, and the layers whose gradients were not there when it was sent."""
    found, send = [], dist.all_reduce

    def noted(flat, **words):
        found.append((flat.numel(), [number for number, one in enumerate(layers) if one.weight.grad is None]))
        return send(flat, **words)

    monkeypatch.setattr(dist, "all_reduce", noted)
    return found


def backward(layers):
    layers(INPUT).square().sum().backward()


def gradients(layers):
    return [weight.grad.clone() for weight in layers.parameters()]


def test_buckets_are_sent_while_backward_goes_on(layers, sent):
    reduced = Reducer(layers.parameters(), None)
    reduced.arm()
    backward(layers)
    # The bias of a layer is the first of the next bucket: a weight fills its own.
    assert [missing for _, missing in sent[:2]] == [[0, 1], [0]]
    reduced.finish()
    assert sum(elements for elements, _ in sent) == sum(weight.numel() for weight in layers.parameters())


def test_gradients_are_the_mean_of_what_the_ranks_add_up(layers, sent):
    backward(layers)
    own = gradients(layers)
    layers.zero_grad()
    reduced = Reducer(layers.parameters(), None)
    reduced.arm()
    backward(layers)
    reduced.finish()
    for found, wanted in zip(gradients(layers), own, strict=True):
        assert torch.equal(found, wanted / 2)  # the other rank adds nothing here


def test_a_pass_that_was_not_armed_adds_up_and_sends_nothing(layers, sent):
    reduced = Reducer(layers.parameters(), None)
    backward(layers)
    assert sent == []
    own = gradients(layers)
    reduced.arm()
    backward(layers)
    reduced.finish()
    for found, wanted in zip(gradients(layers), own, strict=True):
        torch.testing.assert_close(found, wanted)  # two passes, halved
    count = len(sent)
    backward(layers)
    assert len(sent) == count


def test_a_weight_that_backward_does_not_use_has_zeros(layers, sent):
    unused = nn.Parameter(torch.ones(4))
    reduced = Reducer([unused, *layers.parameters()], None)
    reduced.arm()
    backward(layers)
    reduced.finish()
    assert torch.equal(unused.grad, torch.zeros(4))


def test_gradients_with_strides_of_their_own_come_back_in_order(layers):
    reduced = Reducer([weight := nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))], None)
    reduced.arm()
    factor = torch.arange(96.0).view(2, 3, 4, 4)
    (weight * factor).sum().backward()
    reduced.finish()
    assert torch.equal(weight.grad, factor / 2)


def test_nothing_is_sent_once_it_is_closed(layers, sent):
    reduced = Reducer(layers.parameters(), None)
    reduced.arm()
    reduced.close()
    backward(layers)
    assert sent == []


def test_the_engine_sends_while_the_last_micro_steps_backward_goes_on(layers, sent):
    engine = DeepSpeedEngine.__new__(DeepSpeedEngine)  # as it is around DeepSpeed's, which is not needed here
    engine._engine = SimpleNamespace(backward=lambda loss: loss.backward(), step=lambda: None)
    engine._reducer = Reducer(layers.parameters(), None)
    engine.backward(layers(INPUT).square().sum(), last=False)
    assert sent == []
    layers.zero_grad()
    engine.backward(layers(INPUT).square().sum(), last=True)
    assert sent[0][1] == [0, 1]
    assert sum(elements for elements, _ in sent) == sum(weight.numel() for weight in layers.parameters())
