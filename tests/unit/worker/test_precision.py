"""What `precision` means for one rank, in every engine that can say so without others."""

from importlib.util import find_spec

import pytest

pytest.importorskip("torch")

import torch
from torch.nn import functional

from vitscale.config.load import load
from vitscale.data.catalog import describe
from vitscale.hardware.probe import probe
from vitscale.study.grid import Images, Where, build
from vitscale.worker import engines, optimizers
from vitscale.worker.measure import build_model

SIZE = ("protocol=strong", "world_size=1", "data.name=synthetic", "depth=2", "embed_dim=48", "global_batch=4")
CPU = torch.device("cpu")


@pytest.fixture
def losses():
    """Losses of two steps, and the number formats that were met on the way."""

    def take(*words):
        images = lambda section: Images(describe(section.name, None, None), "generated")  # noqa: E731
        spec = build(load("quick", [*SIZE, "img_size=16", "device=cpu", *words]).study, Where(probe()), images).runs[0]
        model = build_model(spec, CPU)
        found = []
        model.blocks[0].attn.qkv.register_forward_hook(lambda *args: found.append(args[2].dtype))
        model.norm.register_forward_hook(lambda *args: found.append(args[2].dtype))
        engine = engines.build(spec, model, optimizers.build(model, spec.optimizer, CPU))
        torch.manual_seed(0)
        batch, labels = torch.randn(4, 3, 16, 16).to(engine.dtype), torch.tensor([1, 2, 3, 4])
        taken = []
        for _ in range(2):
            loss = functional.cross_entropy(engine(batch).float(), labels)
            engine.backward(loss, last=True)
            found.append(next(model.parameters()).grad.dtype)
            engine.step()
            taken.append(loss.item())
        engine.close()
        return taken, found[:3]

    return take


@pytest.mark.parametrize(
    ("precision", "product", "stream", "gradient"),
    [
        ("fp32", torch.float32, torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ("bf16_autocast", torch.bfloat16, torch.float32, torch.float32),
    ],
)
def test_a_precision_says_what_is_computed_in_which_format(losses, precision, product, stream, gradient):
    assert losses("engine=single", f"precision={precision}")[1] == [product, stream, gradient]


@pytest.mark.skipif(not find_spec("accelerate"), reason="Accelerate is not installed")
def test_autocast_of_accelerate_is_that_of_the_others(losses):
    single, accelerate = (losses(f"engine={name}", "precision=bf16_autocast") for name in ("single", "accelerate"))
    assert single == accelerate
    assert single[0] != losses("engine=single")[0]
