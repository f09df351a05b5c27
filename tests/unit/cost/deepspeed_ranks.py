"""One rank of `test_cost_deepspeed.py`: every ZeRO stage in turn, live tensors and collectives counted from outside."""

import contextlib
import gc
import itertools
import json
import logging
import os
import sys
import warnings
from collections import defaultdict
from pathlib import Path

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

from vitscale.worker.__main__ import _without_trackers  # noqa: E402

with _without_trackers():  # which take 5 s
    # isort: off
    import timm  # (before deepspeed)
    import torch
    import torch.distributed as dist
    import deepspeed
    # isort: on

gc.freeze()  # what is counted is made from here on: objects of the imports are not searched

OPERATIONS = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
}
SMALLEST_BYTES = 8  # norms and overflow flags are not modelled


def storages():
    found = {}
    for thing in gc.get_objects():
        with contextlib.suppress(ReferenceError):
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


def live_bytes():
    gc.collect()
    return sum(storages().values())


def largest(values):
    return max((value.numel() * value.element_size() for value in values if torch.is_tensor(value)), default=0)


@contextlib.contextmanager
def counted():
    """Count the calls and the largest tensor of each collective on DeepSpeed's backend."""
    backend, counts = deepspeed.comm.comm.cdb, defaultdict(lambda: [0, 0])

    def count(original, operation):
        def call(*args, **kwargs):
            size = largest([*args, *kwargs.values()])
            if size > SMALLEST_BYTES:
                counts[operation][0] += 1
                counts[operation][1] += size
            return original(*args, **kwargs)

        return call

    for name, operation in OPERATIONS.items():
        setattr(backend, name, count(getattr(backend, name), operation))
    yield counts
    for name in OPERATIONS:
        delattr(backend, name)


def measure(zero_stage, precision, bucket, grad_accum):
    before_bytes = live_bytes()
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=3, num_classes=10)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": grad_accum,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero_stage, "reduce_bucket_size": bucket},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if precision != "fp32":
        config[precision] = {"enabled": True}
    optimizer = torch.optim.AdamW(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    gradient_bytes = 0

    def step():
        nonlocal gradient_bytes
        for micro_step in range(grad_accum):
            loss = engine(torch.randn(2, 3, 32, 32, dtype=dtype)).float().square().mean()
            engine.backward(loss)
            if micro_step == 0:
                gradient_bytes = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
            engine.step()

    for _ in range(2):
        step()
    with counted() as counts:
        step()
    return engine, {
        "after_step_bytes": live_bytes() - before_bytes,
        "micro_step_gradient_bytes": gradient_bytes,
        "collectives": dict(counts),
    }


def main(rank, folder, bucket, grad_accum):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # skips compiling C++
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(0)
    found, engines = {"fp32": {}, "bf16": {}}, []
    for precision, zero_stage in itertools.product(found, range(4)):
        engine, found[precision][zero_stage] = measure(zero_stage, precision, bucket, grad_accum)
        engines.append(engine)  # kept alive, so that what is freed later does not hide in the next figure
    if rank == 0:
        Path(folder, "measured.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
