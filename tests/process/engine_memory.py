"""One rank of `test_engines.py`: each run is built, takes steps and is closed; what is left in memory is told.

As in a worker glibc keeps what a step frees; `devices.return_memory` is what gives it back between runs.
"""

import gc
import json
from pathlib import Path

# isort: off
import timm  # noqa: F401 (before DeepSpeed)
import deepspeed  # noqa: F401 (once for all ranks)

# isort: on
import psutil
import torch
import torch.distributed as dist
from torch.nn import functional

from vitscale.config.runspec import RunSpec
from vitscale.worker import devices, engines, optimizers
from vitscale.worker.distributed import connect
from vitscale.worker.model import build_model

CPU = torch.device("cpu")


def live_bytes():
    """Of all tensors that Python still sees."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def serve(spec):
    linear = functional.linear
    model = build_model(spec, CPU)
    optimizer = optimizers.build(model, spec.optimizer, CPU)
    engine = engines.build(spec, model, optimizer)
    for _ in range(2):
        images = torch.randn(spec.micro_batch, 3, spec.model.img_size, spec.model.img_size, dtype=engine.dtype)
        engine.backward(engine(images).float().square().mean(), last=True)
        engine.step()
    engine.close()
    assert functional.linear is linear, f"{spec.engine} {spec.zero_stage} leaves torch with another linear layer"


def main(out, specs):
    """Every run, in order; `specs` are their RunSpecs."""
    torch.set_num_threads(1)
    devices.keep_freed_memory()
    ranks = connect("cpu", "gloo")
    specs = [RunSpec.model_validate(spec) for spec in specs]
    for engine in {spec.engine for spec in specs}:
        engines.prepare(engine, "cpu")
    left = []
    for spec in specs:
        serve(spec)
        devices.return_memory(CPU)
        name = spec.engine if spec.zero_stage is None else f"{spec.engine} {spec.zero_stage}"
        left.append([name, live_bytes(), psutil.Process().memory_info().rss])
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(left))
    dist.barrier()
