"""The trained model as timm and the Hugging Face hub have it: `model.safetensors`, `config.json`, a README card."""

from __future__ import annotations

import shutil
from pathlib import Path

import timm
from timm.models import save_for_hf
from torch import Tensor

from vitscale.config.runspec import RunSpec
from vitscale.records.checkpoint import Evaluation
from vitscale.records.writer import make_folder, write_whole

_HALF = (0.5, 0.5, 0.5)


def write(folder: Path, spec: RunSpec, weights: dict[str, Tensor], last: Evaluation) -> None:
    """Replace `export/` by the trained model.

    Args:
        folder: `export/`.
        spec: the run.
        weights: fp32, by timm's parameter names.
        last: the last evaluation.
    """
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    make_folder(building)
    fresh = timm.create_model(spec.model.name, **spec.model.sizes)
    fresh.load_state_dict({**fresh.state_dict(), **weights})
    arguments = {name: value for name, value in spec.model.sizes.items() if name != "num_classes"}
    data = {
        "input_size": (3, spec.model.img_size, spec.model.img_size),
        "interpolation": "bilinear",
        "mean": _HALF,
        "std": _HALF,
        "crop_pct": 1.0,
    }
    save_for_hf(fresh, str(building), model_args=arguments, safe_serialization=True, data_config=data)
    write_whole(building / "README.md", _card(spec, last).encode())
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def _card(spec: RunSpec, last: Evaluation) -> str:
    recipe = spec.train
    assert recipe is not None
    asked = ", ".join(
        f"{name} {value:g}" for name, value in recipe.model_dump(exclude_defaults=True).items() if value is not None
    )
    return f"""---
library_name: timm
tags: [image-classification, timm]
---
# {spec.model.name}, {spec.model.img_size} px, patch {spec.model.patch_size}, on {spec.data.name}

Test accuracy {last.test_accuracy:.4f} on {last.test_images:,} images after {last.epoch:g} epochs ({last.step:,} steps)\
{", moving average of the weights" if last.average else ""}.

Trained by vitscale: {spec.engine}{"" if spec.zero_stage is None else f" ZeRO-{spec.zero_stage}"}, {spec.precision}, \
global batch {spec.global_batch} ({spec.micro_batch} x {spec.grad_accum} x {spec.data_parallel}), \
{spec.optimizer.name}, learning rate {spec.optimizer.lr:g}, {spec.optimizer.schedule} schedule; {asked}.
Run `{spec.run_id}`.

    import timm
    model = timm.create_model("{spec.model.name}", checkpoint_path="model.safetensors", \
{", ".join(f"{name}={value}" for name, value in spec.model.sizes.items())})
"""
