"""Ulysses over patches on real ranks: the unsharded model's logits and gradients, at the cost the closed form says."""

import pytest

pytest.importorskip("torch")

from ranks import on_ranks
from sequence_ranks import CASES, IMAGES, SIZES

from vitscale.cost import models, sequence, vit

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

BOUND = 1e-5
"""Of each tensor's norm, fp32. Rounding alone makes up to 2e-6."""
# world size, ranks that share an image's tokens, cases: the mesh has two groups of two, each with its own images.
MESHES = {
    "2 ranks": (2, 2, list(CASES)),
    "3 ranks": (3, 3, list(CASES)),
    "2 x 2 ranks": (4, 2, ["tiny, class token", "small, no class token", "under DDP", "under FSDP2"]),
}
KEYS_BIASES = "k_norm.bias"  # attention does not depend on them: their gradient is rounding


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Mesh -> what each of its ranks found, case by case; one process start for all."""
    found = on_ranks("sequence_ranks", tmp_path_factory.mktemp("sequence"), MESHES.values())
    return dict(zip(MESHES, found, strict=True))


@pytest.fixture(params=MESHES)
def mesh(request, found):
    """World size, sequence ranks, and what each rank found."""
    world_size, ranks, _ = MESHES[request.param]
    return world_size, ranks, found[request.param]


def shape(case):
    """The case's shape for the closed forms."""
    name, keys = CASES[case]
    own = {"depth": keys.get("depth", SIZES["depth"])}
    made = models.shape(name, SIZES["img_size"], SIZES["patch_size"], SIZES["num_classes"], **own)
    changes = {"init_values": "layer_scale", "scale_attn_norm": "attn_norm"}
    told = {changes.get(key, key): value for key, value in keys.items() if key not in ("depth", "drop_path_rate")}
    told |= {"layer_scale": True} if "init_values" in keys else {}
    # timm moves the last norm behind the pooling then.
    told |= {"final_norm": False, "fc_norm": True} if keys.get("global_pool") == "avg" else {}
    return models.ViTShape(**{**vars(made), **told})


def test_logits_and_gradients_are_those_of_the_whole_model(mesh):
    _, _, ranks = mesh
    for found in ranks:
        for case, one in found.items():
            gaps = {name: value for name, value in one["gradients"].items() if not name.endswith(KEYS_BIASES)}
            assert one["logits"] < BOUND, case
            assert max(gaps.values()) < BOUND, (case, max(gaps, key=gaps.get))


def test_the_busiest_rank_keeps_computes_and_sends_what_the_closed_form_says(mesh):
    world_size, ranks, found = mesh
    images = IMAGES * ranks // world_size
    for case, one in found[0].items():
        if case in ("drop path", "checkpointed blocks") or case.startswith("under"):
            continue  # keep masks, compute blocks twice, keep buckets and gathered weights
        model = shape(case)
        kept = sequence.activation_bytes(model, images, "fp32", ranks)
        assert kept == pytest.approx(one["activation_bytes"], rel=0.02), case
        assert one["training_flop"] in (images * sequence.training_flop(model, ranks), None), case
        (sent,) = sequence.collectives(model, micro_batch=images, grad_accum=1, precision="fp32", ranks=ranks)
        assert [sent.calls, sent.bytes] == one["sent"], case


def test_activation_memory_falls_with_the_ranks(mesh):
    world_size, ranks, found = mesh
    images = IMAGES * ranks // world_size
    for case in ("tiny, class token", "small, no class token"):
        model = shape(case)
        image = images * 4 * vit.CHANNELS * model.img_size**2  # every rank embeds all of it
        whole = vit.activation_bytes(model, images, "fp32") - image
        most = max(one[case]["activation_bytes"] for one in found) - image
        heads = -(-model.heads // ranks) / model.heads
        tokens = -(-model.tokens // ranks) / model.tokens
        # A quarter of a block is attention's (4 rows of 16); its output is kept on both sides of the all-to-all.
        assert most / whole < 1.05 * (heads / 4 + tokens * 13 / 16)
