"""What fits is the largest that does: one block, or the next model, more does not."""

import pytest

from vitscale.config.load import load
from vitscale.cost import models, vit
from vitscale.cost.collectives import Links
from vitscale.cost.fit import MOST_BLOCKS, largest
from vitscale.cost.run import Machinery, estimate_run
from vitscale.data.catalog import describe
from vitscale.hardware.probe import Machine
from vitscale.study.grid import Images, Where, build

LAPTOP = Machine(2, (0, 1), 16 << 30, "a CPU", (), "NVML sees no GPU", None)
WORDS = ("protocol=strong", "data.name=synthetic", "world_size=2", "global_batch=16")


def runs(*words):
    study = load("quick", (*WORDS, *words)).study
    return build(study, Where(LAPTOP), lambda section: Images(describe(section.name, None), "generated")).runs


def needed(spec, **model):
    changed = spec.model_copy(update={"model": spec.model.model_copy(update=model)})
    return estimate_run(changed, Machinery(None, Links(None, None), None)).memory.total_bytes


@pytest.mark.parametrize("engine", ["deepspeed", "ddp", "fsdp"])
def test_one_block_more_does_not_fit(engine):
    (spec,) = runs(f"engine={engine}", "zero_stage=1")
    found = largest(spec, 1 << 30)
    assert 12 < found.depth < MOST_BLOCKS
    assert needed(spec, depth=found.depth) <= 1 << 30 < needed(spec, depth=found.depth + 1)
    shape = models.shape(spec.model.name, **{**spec.model.sizes, "depth": found.depth})
    assert found.depth_parameters == vit.parameters(shape)


def test_no_larger_timm_model_fits():
    (spec,) = runs("zero_stage=2")
    found = largest(spec, 4 << 30)
    assert found.name_parameters == vit.parameters(models.shape(found.name, num_classes=10))
    fitting = []
    for name in models.names():
        own = models.shape(name)
        if needed(spec, name=name, img_size=own.img_size, patch_size=own.patch_size) <= 4 << 30:
            fitting.append(vit.parameters(models.shape(name, num_classes=10)))
    assert found.name_parameters == max(fitting)


def test_where_nothing_fits_it_is_said():
    (spec,) = runs("zero_stage=0")
    found = largest(spec, 1 << 20)
    assert (found.depth, found.depth_parameters, found.name, found.name_parameters) == (0, 0, None, 0)


def test_deeper_models_fit_at_higher_stages_and_lower_precision():
    depths = {spec.zero_stage: largest(spec, 2 << 30).depth for spec in runs("zero_stage=0,1,3")}
    assert depths[0] < depths[1]
    assert largest(runs("precision=bf16")[0], 2 << 30).depth > depths[0]
