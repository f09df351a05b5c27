"""Tensor parallelism on real ranks: the whole model's logits and gradients, at the cost the closed form says."""

import pytest

pytest.importorskip("torch")

from ranks import on_ranks
from tensor_ranks import CASES, IMAGES, SIZES

from vitscale.cost import models, tensor, vit

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

BOUND = 1e-5
"""Of each tensor's norm, fp32. Rounding alone makes up to 1e-6."""
# world size, ranks that share the weights, cases: the mesh has two groups of two, each with its own images.
MESHES = {
    "2 ranks": (2, 2, list(CASES)),
    "2 x 2 ranks": (4, 2, ["class token", "under DDP", "under FSDP2"]),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Mesh -> what each of its ranks found, case by case; one process start for all."""
    found = on_ranks("tensor_ranks", tmp_path_factory.mktemp("tensor"), MESHES.values())
    return dict(zip(MESHES, found, strict=True))


@pytest.fixture(params=MESHES)
def mesh(request, found):
    """World size, tensor ranks, and what each rank found."""
    world_size, ranks, _ = MESHES[request.param]
    return world_size, ranks, found[request.param]


def part(case, ranks):
    """One rank's share of the case's shape, for the closed forms."""
    name, keys = CASES[case]
    told = {key: value for key, value in keys.items() if key in ("class_token", "global_pool")}
    told |= {"final_norm": False, "fc_norm": True} if keys.get("global_pool") == "avg" else {}
    made = models.shape(name, **SIZES)
    return tensor.part(models.ViTShape(**{**vars(made), **told}), ranks)


def test_logits_gradients_and_their_norm_are_those_of_the_whole_model(mesh):
    for found in mesh[2]:
        for case, one in found.items():
            gaps = one["gradients"]
            assert one["logits"] < BOUND, case
            assert max(gaps.values()) < BOUND, (case, max(gaps, key=gaps.get))
            assert one["norm"] < BOUND, case


def test_gradients_of_replicated_weights_are_equal_to_the_last_bit(mesh):
    assert all(one["replicated"] for found in mesh[2] for one in found.values())


def test_a_rank_holds_keeps_computes_and_sends_what_the_closed_form_says(mesh):
    world_size, ranks, found = mesh
    images = IMAGES * ranks // world_size
    for of_rank in found:
        for case, one in of_rank.items():
            model = part(case, ranks)
            assert one["parameters"] == vit.parameters(model) or case == "under FSDP2", case
            if case == "drop path" or case.startswith("under"):
                continue  # keep masks, buckets and gathered weights, and send gradients too
            assert one["training_flop"] == images * vit.training_flop(model), case
            whole, kept = one["activation_bytes"]
            spared = vit.activation_bytes(part(case, 1), images, "fp32") - vit.activation_bytes(model, images, "fp32")
            assert whole - kept == pytest.approx(spared, rel=0.001), case
            batch = {"micro_batch": images, "grad_accum": 1, "precision": "fp32", "ranks": ranks}
            (sent,) = tensor.collectives(model, **batch)
            assert sent.calls == one["all_reduces"], case
