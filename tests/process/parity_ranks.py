"""One rank of `test_parity_of_ranks.py`: the parity of each run, as a launch takes it before it is timed."""

import json
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from vitscale.config.runspec import RunSpec
from vitscale.worker import sequence, tensor
from vitscale.worker.distributed import connect
from vitscale.worker.model import build_model
from vitscale.worker.parity import check

right = sequence._ToTokens.backward
SPOILT = {
    "a gradient 1 % off": lambda: patch.object(sequence._ToTokens, "backward", lambda ctx, g: right(ctx, 1.01 * g)),
    "heads of others": lambda: patch.object(tensor, "_swapped", lambda rows, outer, inner: rows),
}


def main(out, specs):
    """Every run, in order; `specs` are RunSpecs by case."""
    torch.set_num_threads(1)
    ranks = connect("cpu", "gloo")
    found = {}
    for case, told in specs.items():
        with SPOILT.get(case, nullcontext)():
            parity = check(RunSpec.model_validate(told), ranks, build_model, lambda step: None)
        found[case] = None if parity is None else parity.model_dump(mode="json")
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
