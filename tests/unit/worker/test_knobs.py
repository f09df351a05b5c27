"""Knobs take effect on what is built, and change what is computed by rounding only."""

import pytest
import timm
import torch
from torch.nn.functional import scaled_dot_product_attention

from vitscale.config.knobs import EngineSection
from vitscale.config.study import OptimizerSection
from vitscale.worker import knobs, optimizers
from vitscale.worker.engines import state
from vitscale.worker.engines.ddp import DDPEngine

CPU = torch.device("cpu")
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def model(**turned):
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=48, num_classes=10)
    knobs.apply(EngineSection(**turned), made)
    return made


def saved_bytes(made):
    """What autograd keeps of a forward pass, each tensor once, weights aside."""
    own = {weight.untyped_storage().data_ptr() for weight in made.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = made(IMAGES).square().mean()
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("turned", [{"activation_checkpointing": True}, {"channels_last": True}])
def test_gradients_are_those_without_the_knob(turned):
    plain, other = model(), model(**turned)
    for one in (plain, other):
        one(IMAGES).square().mean().backward()
    for wanted, found in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)


def test_checkpointing_keeps_the_inputs_of_blocks_only():
    assert saved_bytes(model(activation_checkpointing=True)) < 0.5 * saved_bytes(model())


def test_channels_last_is_how_the_patch_embedding_lies_and_is_saved_as_it_was(tmp_path):
    made = model(channels_last=True)
    weight = made.patch_embed.proj.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    optimizer = optimizers.build(made, OptimizerSection(), CPU)
    made(IMAGES).square().mean().backward()
    optimizer.step()
    state.save(tmp_path / "state", dict(made.named_parameters()), optimizer)
    other = model()
    state.load(tmp_path / "state", dict(other.named_parameters()), optimizers.build(other, OptimizerSection(), CPU))
    assert torch.equal(other.patch_embed.proj.weight, weight)


def test_compile_compiles_every_block_and_keeps_the_names_of_weights():
    made = model(compile=True)
    assert all(block._compiled_call_impl is not None for block in made.blocks)
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in model().named_parameters()]


def test_blocks_are_compiled_in_the_mode_that_is_asked_for(monkeypatch):
    modes, begun = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **words: modes.append(words))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    for turned, wanted, steps in (({}, {}, 0), ({"compile_mode": "reduce-overhead"}, {"mode": "reduce-overhead"}, 2)):
        made = model(compile=True, **turned)
        assert modes == [wanted] * 2
        for _ in range(2):
            made(IMAGES)
        assert len(begun) == steps  # a pass each: what graphs returned before may go
        modes.clear()


def test_shapes_of_a_run_before_are_forgotten(monkeypatch):
    seen, compiled = [], torch.nn.Module.compile

    def backend(graph, inputs):
        seen.append(any(isinstance(one, torch.SymInt) for one in inputs))
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend=backend))
    with torch.no_grad():
        for images in (2, 3):
            model(compile=True)(torch.randn(images, 3, 16, 16))
    assert seen
    assert not any(seen)


@pytest.mark.parametrize(("sdpa", "kernel"), [("math", "_scaled_dot_product_attention_math"), ("flash", "flash")])
def test_attention_uses_the_kernel_that_is_asked_for(sdpa, kernel):
    query = torch.randn(1, 2, 4, 8)
    with knobs.attention(EngineSection(sdpa=sdpa)), torch.profiler.profile() as seen:
        scaled_dot_product_attention(query, query, query)
    assert any(kernel in event.name for event in seen.events())
    with knobs.attention(EngineSection(sdpa="cudnn")), pytest.raises(RuntimeError, match=r"backend|kernel"):
        scaled_dot_product_attention(query, query, query)


@pytest.mark.parametrize(
    ("name", "impl", "wanted"),
    [
        ("adamw", "fused", {"fused": True}),
        ("sgd", "foreach", {"foreach": True, "fused": False}),
        ("adamw", "for", {"foreach": False, "fused": False}),
        ("adafactor", "foreach", {"foreach": True}),
        ("lamb", "for", {"foreach": False}),
        ("lion", "foreach", {"foreach": True}),
        ("adamw", None, {"foreach": None, "fused": None}),
    ],
)
def test_an_optimizer_loops_as_it_is_told(name, impl, wanted):
    made = optimizers.build(model(), OptimizerSection(name=name), CPU, impl)
    assert all(group.items() >= wanted.items() for group in made.param_groups)


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def ddp(make_spec, **turned):
    made = model()
    spec = make_spec(EngineSection(**turned))
    return DDPEngine(spec, made, optimizers.build(made, spec.optimizer, CPU))


@pytest.fixture
def make_spec():
    class Spec:
        precision, grad_accum, optimizer = "fp32", 1, OptimizerSection(clip=0.0)
        device, tensor_parallel = "cpu", None

        def __init__(self, turned):
            self.knobs = turned.given

    return Spec


@pytest.mark.usefixtures("alone")
def test_ddp_is_told_its_knobs(make_spec):
    told = ddp(make_spec, bucket_mb=0.5, static_graph=True, gradient_as_bucket_view=False)._model
    assert (told.bucket_bytes_cap, told.static_graph, told.gradient_as_bucket_view) == (1 << 19, True, False)
    plain = ddp(make_spec)._model
    assert (plain.bucket_bytes_cap, plain.static_graph, plain.gradient_as_bucket_view) == (25 << 20, False, True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("hook", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_hook_sends_gradients_in_16_bit(make_spec, hook, dtype):
    engine = ddp(make_spec, ddp_hook=hook)
    engine.backward(engine(IMAGES).square().mean(), last=True)
    for weight in engine._model.parameters():
        assert torch.equal(weight.grad, weight.grad.to(dtype).float())
    engine.step()
