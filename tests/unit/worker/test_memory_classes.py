"""What is counted of a rank without any other, and that looking at it changes nothing."""

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from vitscale.config.load import load
from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run
from vitscale.data.catalog import describe
from vitscale.hardware.probe import probe
from vitscale.study.grid import Images, Where, build
from vitscale.worker import engines, memory, optimizers
from vitscale.worker.engines import Held
from vitscale.worker.model import build_model

WORDS = (
    "protocol=strong", "engine=single", "world_size=1", "data.name=synthetic", "depth=2", "global_batch=8",
    "img_size=16",
)  # fmt: skip


def spec_of(*words):
    images = lambda section: Images(describe(section.name, None, None), "generated")  # noqa: E731
    return build(load("quick", [*WORDS, *words]).study, Where(probe()), images).runs[0]


def live(spec):
    model = build_model(spec, torch.device("cpu"))
    engine = engines.build(spec, model, optimizers.build(model, spec.optimizer, torch.device("cpu")))
    images = torch.zeros(spec.micro_batch, 3, 16, 16, dtype=engine.dtype)
    engine.backward(engine(images).float().square().mean(), last=True)
    engine.step()
    return engine, model


@pytest.mark.parametrize(
    "words",
    [
        ("precision=fp32",),
        ("precision=bf16", "grad_accum=2"),
        ("precision=bf16_autocast",),
        ("optimizer.name=sgd",),
    ],
)
def test_classes_of_a_single_rank_are_the_closed_forms(words):
    spec = spec_of(*words)
    engine, _ = live(spec)
    found = memory.measure(engine, spec, torch.device("cpu"))
    derived = estimate_run(spec, Machinery(None, Links(None, None), None)).memory
    assert found.parameters_bytes == derived.model_state.parameters_bytes
    assert found.gradients_bytes == derived.model_state.gradients_bytes
    assert found.optimizer_bytes == pytest.approx(derived.model_state.optimizer_bytes, rel=0.001)
    assert found.activations_bytes == pytest.approx(derived.activations_bytes, rel=0.03)
    assert found.buckets_bytes == 0


def test_counting_is_a_step_like_any_other():
    spec = spec_of("grad_accum=2")
    (counted, model), (plain, same) = live(spec), live(spec)
    memory.measure(counted, spec, torch.device("cpu"))
    images, labels = torch.zeros(spec.micro_batch, 3, 16, 16), torch.zeros(spec.micro_batch, dtype=torch.long)
    for micro_step in range(2):
        plain.backward(nn.functional.cross_entropy(plain(images), labels), last=micro_step == 1)
    plain.step()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), same.parameters(), strict=True))
    assert all(weight.grad is None for weight in model.parameters())


class Sharing:
    """Holds a gradient in the first half of a bucket."""

    def __init__(self):
        self.bucket = torch.zeros(100)

    def held(self):
        return Held([torch.zeros(10)], [self.bucket[:50].view(5, 10)], [], buckets=[self.bucket])


def test_memory_that_two_classes_share_counts_once():
    watch = memory._Watch(Sharing())
    watch.look()
    assert watch.most_bytes["gradients_bytes"] == 200
    assert watch.most_bytes["buckets_bytes"] == 200


def test_what_a_collective_was_given_counts_until_it_is_freed():
    watch = memory._Watch(Sharing())
    flat = torch.zeros(25)
    watch.look([flat])
    assert watch.most_bytes["buckets_bytes"] == 300
    del flat
    watch.most_bytes.clear()
    watch.look([torch.zeros(1)])
    assert watch.most_bytes["buckets_bytes"] == 204
