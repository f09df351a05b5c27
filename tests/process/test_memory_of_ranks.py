"""What ranks hold, counted on live engines, against the closed forms of the plan."""

import pytest
from ranks import launches, runs, serve

from vitscale.cost.collectives import Links
from vitscale.cost.run import Machinery, estimate_run

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

CLASSES = ("parameters", "gradients", "optimizer", "activations", "buckets")
MODEL = ("model.name=vit_tiny_patch16_224", "depth=6", "img_size=32", "patch_size=8", "global_batch=8", "steps=1")


@pytest.mark.parametrize(
    ("world_size", "engines", "precisions"),
    [(1, "deepspeed", "bf16"), (2, "deepspeed,ddp,fsdp", "fp32,bf16,bf16_autocast")],
)
def test_every_class_is_within_a_tenth_of_its_closed_form(store, tmp_path, world_size, engines, precisions):
    words = (*MODEL, f"engine={engines}", "zero_stage=0,1,2,3", f"precision={precisions}", "grad_accum=2")
    specs = runs(store, *words, f"world_size={world_size}")
    end, _ = serve(store, tmp_path, specs)
    assert end.status == "ok", end.reason
    found = launches(tmp_path)
    assert len(found) == len(specs) == (4 + engines.count(",")) * (1 + precisions.count(","))
    apart = {}
    for spec in specs:
        memory = estimate_run(spec, Machinery(None, Links(None, None), None)).document()["memory_bytes"]
        for device in found[spec.run_id, "launch0"]["devices"]:
            for name in CLASSES:
                measured, derived = device["memory"][f"{name}_bytes"], memory[name]
                # FSDP's reduce-scatter frees gradients that it has in hand alone before anybody can look.
                bound = 0.2 if (spec.engine, name) == ("fsdp", "buckets") else 0.1
                if abs(measured - derived) > bound * derived:
                    apart[spec.engine, spec.zero_stage, spec.precision, name] = (measured, derived)
    assert apart == {}
