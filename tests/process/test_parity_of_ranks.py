"""Parity before timing on two ranks: of what they share, and of knobs; what is wrong with either is found."""

import pytest
from ranks import on_ranks, runs

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

MODEL = (
    "world_size=2", "model.name=vit_tiny_patch16_224", "depth=1", "embed_dim=48", "num_heads=4", "global_batch=8",
    "grad_accum=2",
)  # fmt: skip
KNOBS = ("channels_last=true", "activation_checkpointing=true", "sdpa=math", "optimizer_impl=foreach")
RIGHT = {
    "other images": ("engine=ddp", *(f"engine.{knob}" for knob in KNOBS)),
    "shared tokens": ("engine=fsdp", "sequence_parallel=2", "engine.activation_checkpointing=true"),
    "shared weights": ("engine=ddp", "tensor_parallel=2"),
    "shared weights, sharded": ("engine=fsdp", "tensor_parallel=2"),
    "sent beside backward": ("zero_stage=0", "engine.overlap_reduce=true"),
    "16 bits in the run": (
        "zero_stage=1", "precision=bf16", "deepspeed.communication_data_type=bf16",
        "deepspeed.data_types.grad_accum_dtype=bf16",
    ),
}  # fmt: skip
WRONG = {
    "a gradient 1 % off": ("engine=ddp", "sequence_parallel=2"),
    "heads of others": ("engine=ddp", "tensor_parallel=2"),
}


@pytest.fixture(scope="module")
def proofs(store, tmp_path_factory):
    """case -> its parity, as rank 0 found it; one process start for all."""
    out = tmp_path_factory.mktemp("parity")
    specs = {case: runs(store, *MODEL, *words)[0].model_dump(mode="json") for case, words in {**RIGHT, **WRONG}.items()}
    ((found, other),) = on_ranks("parity_ranks", out, [(2, specs)])
    assert set(other.values()) == {None}
    return found


@pytest.mark.parametrize("case", RIGHT)
def test_what_ranks_share_and_knobs_are_like_plain_torch(proofs, case):
    assert proofs[case]["ok"], proofs[case]
    assert 0 < proofs[case]["worst_weight"] < 1e-4


@pytest.mark.parametrize(("case", "step"), [("a gradient 1 % off", 1), ("heads of others", 0)])
def test_what_is_wrong_is_found_in_the_first_step_it_shows_in(proofs, case, step):
    assert (proofs[case]["ok"], proofs[case]["first_step"]) == (False, step)
