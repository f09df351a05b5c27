"""Which models can share their weights, and the order of timm's fused rows."""

import pytest
import timm
import torch

from vitscale.cost import models
from vitscale.errors import Infeasible, UsageError
from vitscale.study.engines import require_shares
from vitscale.worker import tensor

FORMS = ["vit_small_patch16_224", "vit_tiny_patch16_224", "aimv2_huge_patch14_224", "beit3_base_patch16_224"]


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", FORMS)
def test_the_worker_refuses_what_the_plan_skips(name, ranks):
    with torch.device("meta"):
        block = timm.create_model(name, depth=1).blocks[0]
    try:
        require_shares(models.shape(name), ranks)
    except Infeasible:
        with pytest.raises(UsageError, match=f"`tensor_parallel = {ranks}`"):
            tensor._require_whole_shares(block, ranks)
    else:
        tensor._require_whole_shares(block, ranks)


def test_other_models_are_refused():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    with pytest.raises(UsageError, match="`tensor_parallel` needs timm's `VisionTransformer`"):
        tensor.shard(model, 2)


def test_an_even_split_of_the_ordered_rows_gives_each_rank_q_k_and_v_of_its_heads():
    heads, width = 4, 3
    rows = torch.arange(3 * heads * width).reshape(3, heads, width)
    for ranks in (1, 2, 4):
        ordered = tensor._swapped(rows.flatten(), 3, ranks)
        for rank, own in enumerate(ordered.chunk(ranks)):
            mine = slice(rank * heads // ranks, (rank + 1) * heads // ranks)
            assert torch.equal(own.reshape(3, heads // ranks, width), rows[:, mine])
        assert torch.equal(tensor._swapped(ordered, ranks, 3), rows.flatten())


def test_gradients_of_whole_weights_have_torchs_norm():
    gradients = {"a": torch.randn(3, 4), "b": torch.randn(5)}
    expected = torch.nn.utils.get_total_norm(list(gradients.values()))
    assert torch.equal(tensor.total_norm(gradients, {}), expected)
    assert torch.allclose(tensor.own_square(gradients, {}).sqrt(), expected)
