"""Layers of a real timm ViT timed by hooks on a made-up timeline."""

import time

import pytest

pytest.importorskip("torch")

import torch

from vitscale.config.load import load
from vitscale.data.catalog import describe
from vitscale.hardware.probe import probe
from vitscale.study.grid import Images, Where, build
from vitscale.worker import engines, optimizers, roofline
from vitscale.worker.model import build_model
from vitscale.worker.pipeline import Batch
from vitscale.worker.timeline import HostTimeline

GIVEN = (
    "protocol=strong", "engine=single", "world_size=1", "data.name=synthetic", "depth=2", "global_batch=8",
    "img_size=16", "patch_size=8", "grad_accum=2",
)  # fmt: skip
LAYERS = ["patch_embed", "norm", "qkv", "attention", "proj", "fc1", "fc2", "head"]


def spec_of(*words):
    images = lambda section: Images(describe(section.name, None, None), "generated")  # noqa: E731
    merged = {word.partition("=")[0]: word for word in (*GIVEN, *words)}
    return build(load("quick", [*merged.values()]).study, Where(probe()), images).runs[0]


class Zeros:
    def __init__(self, spec):
        size = spec.model.img_size
        self.batch = Batch(
            torch.zeros(spec.micro_batch, 3, size, size), torch.zeros(spec.micro_batch, dtype=torch.long)
        )

    def __next__(self):
        return self.batch


class Ticks(HostTimeline):
    """Each look at the time is a second after the one before."""

    def __init__(self):
        super().__init__()
        self.seconds = 0

    def wait(self, seconds):
        self.seconds += seconds

    def now(self):
        self.seconds += 1
        return self.seconds * 10**9


def hooks(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def measured(timeline, peak=None, hook=None):
    spec = spec_of()
    model = build_model(spec, torch.device("cpu"))
    engine = engines.build(spec, model, optimizers.build(model, spec.optimizer, torch.device("cpu")))
    gathered = [module for module in model.modules() if [*module.parameters(recurse=False)] and hook]
    for module in gathered:
        module.register_forward_pre_hook(hook)
        module.register_forward_hook(hook)
    beats = []
    before = hooks(model)
    found = roofline.measure(model, engine, Zeros(spec), spec, timeline, peak, lambda: beats.append(1))
    assert len(beats) == roofline.STEPS
    assert hooks(model) == before
    return {one.layer: one for one in found}


@pytest.mark.parametrize("gathers", [False, True])
def test_each_layer_of_both_micro_steps_is_timed_and_neither_the_first_step_nor_an_engine_that_gathers(gathers):
    ticks = Ticks()
    found = measured(ticks, hook=(lambda *_told: ticks.wait(100)) if gathers else None)
    assert list(found) == LAYERS
    # Two blocks, two micro-steps; a block has two norms, and one follows the blocks.
    expected = {"patch_embed": 2, "norm": 10, "qkv": 4, "attention": 4, "proj": 4, "fc1": 4, "fc2": 4, "head": 2}
    assert {layer: one.seconds_per_step for layer, one in found.items()} == pytest.approx(expected)
    assert all(one.peak_share is None for one in found.values())


def test_a_call_in_which_the_host_did_something_else_does_not_count():
    class Stalled(Ticks):
        looks = 0

        def now(self):
            self.looks += 1
            self.wait(
                1000 if self.looks == 2 * 68 + 4 else 0
            )  # 68 looks a step: at the end of the last one's first norm
            return super().now()

    assert measured(Stalled())["norm"].seconds_per_step == pytest.approx(10)


def test_the_share_of_the_peak_is_what_the_products_attain_over_it():
    found = measured(Ticks(), peak=1e6)
    assert found["norm"].flop_per_step is found["norm"].flop_per_s is found["norm"].peak_share is None
    fc1 = found["fc1"]
    assert fc1.peak_share == pytest.approx(fc1.flop_per_step / 4 / 1e6)


def test_on_this_cpu_the_layers_take_less_than_the_steps():
    began = time.perf_counter()
    found = measured(HostTimeline())
    assert 0 < 2 * sum(one.seconds_per_step for one in found.values()) < time.perf_counter() - began


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], None),
        (["engine.compile=true"], "compiled blocks have no layers"),
        (["engine.activation_checkpointing=true"], "layers are computed again in backward passes"),
        (["engine=ddp", "world_size=2", "sequence_parallel=2"], "ranks share the layers"),
        (["engine=ddp", "world_size=2", "tensor_parallel=2", "num_heads=4"], "ranks share the layers"),
    ],
)
def test_where_layers_are_not_what_the_closed_form_counts_there_is_a_reason(words, reason):
    assert roofline.refusal(spec_of(*words)) == reason
