"""One rank of `test_uneven.py`: each run with equal and with unequal shares, and with unequal ones not weighted."""

import json
from pathlib import Path

# isort: off
import timm  # noqa: F401 (before DeepSpeed)
import deepspeed  # noqa: F401 (once for all ranks)

# isort: on
import torch

from vitscale.config.knobs import EngineSection
from vitscale.config.runspec import RunSpec
from vitscale.data.reader import open_split
from vitscale.records.schema import Split
from vitscale.worker import engines, optimizers, uneven
from vitscale.worker.clock import NoClock
from vitscale.worker.distributed import barrier, connect, total
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.model import build_model
from vitscale.worker.pipeline import open_batches

STEPS = 3


def trained(spec, split, weighing, ranks, data):
    """Losses of each step, mean over its images, and the weights after the last and before the first."""
    model = build_model(spec, ranks.device)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    own = uneven.dealt(spec, split, ranks.rank)
    built = engines.build(own, model, optimizers.build(model, spec.optimizer, ranks.device))
    engine = uneven.weighted(built, split if weighing else None, ranks.rank)
    batches = open_batches(own, open_split(spec.data.name, "train", data), ranks, engine.dtype)
    losses = Losses(own.grad_accum)
    run_steps(range(STEPS), engine, batches, NoClock(), losses, own.grad_accum, lambda step: None)
    means = torch.tensor(losses.drain(), dtype=torch.float64) * own.images_counted(ranks.rank) / own.global_batch
    weights = engine.weights()
    batches.close()
    engine.close()
    return total(means), weights, before


def gaps(one, other):
    """Of losses the largest, relative; of weights the whole and the worst tensor's, relative to the update."""
    weights, wanted, before = one[1], other[1], other[2]
    moved = {name: (wanted[name] - before[name]).norm() for name in wanted}
    apart = {name: (weights[name] - wanted[name]).norm() for name in wanted}
    whole = torch.stack([*moved.values()]).norm()
    return {
        "losses": float(((one[0] - other[0]) / other[0]).abs().max()),
        "weights": float(torch.stack([*apart.values()]).norm() / whole),
        "worst": float(max(apart.values()) / whole),
    }


def main(out, cases, data):
    """Rank 0 leaves what the unequal shares end in, beside the even split.

    Args:
        out: where.
        cases: by name the even split's RunSpec and the micro-batches by rank.
        data: folder of the prepared data sets.
    """
    torch.set_num_threads(1)
    ranks = connect("cpu", "gloo")
    specs = {name: RunSpec.model_validate(case["spec"]) for name, case in cases.items()}
    for engine in {spec.engine for spec in specs.values()}:
        engines.prepare(engine, "cpu")
    barrier()
    found = {}
    for name, spec in specs.items():
        micro_steps = cases[name]["micro_steps"]
        split = Split(micro_batches=tuple(cases[name]["split"]), micro_steps=micro_steps and tuple(micro_steps))
        knobs = (spec.knobs or EngineSection()).model_copy(update={"split": split.micro_batches})
        even = trained(spec, None, False, ranks, Path(data))
        asked = spec.model_copy(update={"knobs": knobs})
        dealt, plain = (trained(asked, split, weighing, ranks, Path(data)) for weighing in (True, False))
        if ranks.rank == 0:
            found[name] = {"weighted": gaps(dealt, even), "plain": gaps(plain, even)}
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))
