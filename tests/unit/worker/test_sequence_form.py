"""Which models can share their tokens."""

import pytest
import timm
import torch

from vitscale.cost import models
from vitscale.errors import UsageError
from vitscale.worker.sequence import require_form

PLAIN = [name for name in models.names() if name.startswith(("test_", "beit3_b", "aimv2_h"))]


@pytest.mark.parametrize("name", [*PLAIN, "vit_base_patch16_rpn_224"])
def test_plain_vits_can(name):
    with torch.device("meta"):
        require_form(timm.create_model(name, depth=1), "sequence_parallel")


@pytest.mark.parametrize("name", ["vit_small_patch16_18x2_224", "resnet18"])
def test_others_are_refused(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UsageError, match="needs timm's `VisionTransformer` with `blocks` of plain `attn`, not `"):
        require_form(model, "sequence_parallel")
