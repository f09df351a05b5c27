import math

import pytest

torch = pytest.importorskip("torch")

WANTED = ([2.0] * 8, {"head.weight": torch.ones(4), "blocks.0.attn.qkv.bias": torch.ones(6)})


def compared(losses=None, **weights):
    from vitscale.worker.parity import compare

    return compare((losses or WANTED[0], {**WANTED[1], **weights}), WANTED)


def test_rounding_passes():
    found = compared([2.0 * (1 + 2e-7)] * 8)
    assert (found.ok, found.first_step) == (True, None)
    assert found.worst_loss == pytest.approx(2e-7, rel=1e-6)


def test_the_first_step_that_differs_is_named():
    found = compared([2.0, 2.0, 2.0, 2.0001, 2.0, 2.0, 2.0, 2.0])
    assert (found.ok, found.first_step) == (False, 3)
    assert found.worst_loss == pytest.approx(5e-5)


def test_a_weight_that_differs_is_named_though_all_losses_agree():
    found = compared(**{"head.weight": torch.tensor([1.0, 1.0, 1.0, 1.001])})
    assert (found.ok, found.first_step, found.tensor) == (False, 7, "head.weight")
    assert found.worst_weight == pytest.approx(5e-4, rel=1e-3)


def test_biases_of_attention_keys_are_not_compared_and_the_others_are():
    keys, values = torch.ones(6), torch.ones(6)
    keys[2:4], values[4:] = 0.5, 0.5
    assert compared(**{"blocks.0.attn.qkv.bias": keys}).ok
    assert not compared(**{"blocks.0.attn.qkv.bias": values}).ok


def test_what_is_not_a_number_fails():
    found = compared([2.0, math.nan, *[2.0] * 6])
    assert (found.ok, found.first_step, found.worst_loss) == (False, 1, None)
    assert not compared(**{"head.weight": torch.full((4,), math.nan)}).ok


@pytest.fixture
def one_rank(tmp_path):
    import torch.distributed as dist

    from vitscale.worker.distributed import Ranks

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield Ranks(0, 0, 1, 1, torch.device("cpu"))
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def spec_of(*words):
    from vitscale.config.load import load
    from vitscale.data.catalog import DatasetFacts
    from vitscale.hardware.probe import probe
    from vitscale.study.grid import Images, Where, build

    tiny = ("model.name=vit_tiny_patch16_224", "img_size=16", "patch_size=8", "depth=1", "embed_dim=48")
    given = (*tiny, "engine=ddp", "world_size=1", "protocol=strong", "grad_accum=2", "precision=bf16", "device=cpu")
    merged = {word.partition("=")[0]: word for word in (*given, *words)}.values()
    images = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")
    (spec,) = build(load("quick", tuple(merged)).study, Where(probe()), lambda section: images).runs
    return spec


def checked(ranks, *words):
    from vitscale.worker.model import build_model
    from vitscale.worker.parity import check

    return check(spec_of(*words), ranks, build_model, lambda step: None)


def test_an_engine_follows_plain_torch(one_rank):
    found = checked(one_rank)
    assert found.ok
    assert found.worst_loss < 2e-6


def test_an_engine_whose_gradients_are_one_per_cent_off_is_found_out(one_rank, monkeypatch):
    from vitscale.worker.engines.ddp import DDPEngine

    right = DDPEngine.backward
    monkeypatch.setattr(DDPEngine, "backward", lambda self, loss, last: right(self, 1.01 * loss, last=last))
    found = checked(one_rank)
    assert not found.ok
    assert found.first_step == 1


KNOBS = ("activation_checkpointing=true", "channels_last=true", "sdpa=math", "optimizer_impl=foreach")


def test_the_engine_has_the_runs_knobs_and_plain_torch_has_none(one_rank, monkeypatch):
    from vitscale.worker import knobs

    seen, right = [], knobs.apply

    def turned_too_far(given, model):
        right(given, model)
        seen.append((given.activation_checkpointing, given.optimizer_impl))
        if given.sdpa:
            model.head.weight.data *= 1.01

    words = [f"engine.{word}" for word in KNOBS]
    assert checked(one_rank, *words).ok
    monkeypatch.setattr(knobs, "apply", turned_too_far)
    assert checked(one_rank, *words).first_step == 0
    assert seen == 2 * [(True, "foreach"), (None, None)]


@pytest.mark.parametrize(
    ("optimizer", "followed", "kernels"),
    [("adamw", "adamw", "deepspeed"), ("adamw", "sgd", None), ("lion", "adamw", None)],
)
def test_kernels_that_the_steps_cannot_have_are_left_out(optimizer, followed, kernels):
    from vitscale.config.knobs import EngineSection
    from vitscale.config.study import OptimizerSection
    from vitscale.worker.parity import _small

    own = EngineSection(optimizer_impl="deepspeed", sdpa="flash", split=(8, 24))
    changes = {"knobs": own, "device": "cuda", "optimizer": OptimizerSection(name=optimizer)}
    small = _small(spec_of().model_copy(update=changes), OptimizerSection(name=followed))
    assert small.knobs == EngineSection(optimizer_impl=kernels)
    on_cpu = _small(spec_of().model_copy(update={"knobs": own}), OptimizerSection(name=followed))
    assert (on_cpu.knobs.sdpa, on_cpu.knobs.split) == ("flash", None)


@pytest.mark.parametrize(
    ("words", "side", "blocks"), [((), 16, 1), (("img_size=1024", "patch_size=16", "depth=12"), 224, 4)]
)
def test_the_steps_have_few_blocks_and_patches(words, side, blocks):
    from vitscale.worker.parity import _small

    spec = spec_of(*words)
    model = _small(spec, spec.optimizer).model
    assert (model.img_size, model.depth) == (side, blocks)
    assert model.num_heads == spec.model.num_heads


@pytest.mark.parametrize(("ranks", "micro_batch", "grad_accum"), [(2, 4, 2), (8, 2, 2), (64, 1, 2)])
def test_rank_0_takes_few_images_in_place_of_many_ranks(ranks, micro_batch, grad_accum):
    from vitscale.worker.parity import _small

    spec = spec_of().model_copy(update={"data_parallel": ranks, "micro_batch": 64, "grad_accum": 4})
    small = _small(spec, spec.optimizer)
    assert (small.micro_batch, small.grad_accum) == (micro_batch, grad_accum)
    assert small.global_batch == ranks * micro_batch * grad_accum


@pytest.mark.parametrize(("precision", "left"), [("bf16", {}), ("fp32", {"communication_data_type": "bf16"})])
def test_what_travels_in_16_bits_does_so_where_the_run_has_32(precision, left):
    from vitscale.worker.parity import _small

    changes = {"precision": precision, "deepspeed": {"communication_data_type": "bf16"}}
    spec = spec_of().model_copy(update=changes)
    assert _small(spec, spec.optimizer).deepspeed == left


def test_runs_that_differ_in_what_parity_leaves_out_share_one_check(one_rank):
    from vitscale.worker.model import build_model
    from vitscale.worker.parity import Proofs

    proofs, beats = Proofs(), []
    checks = (), ("precision=fp32", "optimizer.name=sgd", "optimizer.lr=0.1"), ("engine.bucket_mb=1",), ("depth=2",)
    taken = []
    for words in checks:
        assert proofs.of(spec_of(*words), one_rank, build_model, beats.append).ok
        taken.append(len(beats))
    assert taken[0] == taken[1] < taken[2] < taken[3]
