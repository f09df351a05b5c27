"""Training with shared weights is training: alone and under data parallelism it follows a plain loop and one rank.

Shared tokens under data parallelism are here too: four ranks start once.
"""

import json
import math

import numpy as np
import pytest
from ranks import over_tiny, runs, serve, serve_each, steps
from safetensors.torch import load_file
from test_parity import ADAMW, BATCH, BOUND, SGD, gap, reference

from vitscale.hardware.probe import probe
from vitscale.records.round import Checkpointing, Entry
from vitscale.study.rounds import make_round

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 6
# A clip that always binds shows a wrong norm; without one, a wrong scale shows.
CLIPPED = {**SGD, "clip": 0.1}
CASES = {
    "sgd": (SGD, "engine=ddp,fsdp,deepspeed", "zero_stage=0,3", "grad_accum=2"),
    "sgd, clipped": (CLIPPED, "engine=ddp,fsdp,deepspeed", "zero_stage=0,2,3"),
    "sgd, each rank for itself again": (SGD, "zero_stage=1", "tensor_parallel=1"),
    "bf16": (ADAMW, "engine=ddp,deepspeed", "zero_stage=1", "precision=bf16"),
}


@pytest.fixture(scope="module")
def shared(store, tmp_path_factory):
    """case -> engine and ZeRO stage -> mean loss of every step on two ranks; one process start for all."""
    specs = []
    for case, (optimizer, *words) in CASES.items():
        keys = [f"optimizer.{key}={value}" for key, value in optimizer.items()]
        sizes = ("world_size=2", "tensor_parallel=2", f"global_batch={BATCH}", f"steps={STEPS - 1}")
        specs += [(case, spec) for spec in runs(store, *sizes, *keys, *words)]
    end, folders = serve(store, tmp_path_factory.mktemp("tensor"), [spec for _, spec in specs])
    assert end.status == "ok", end.reason
    losses = {case: {} for case in CASES}
    for (case, spec), folder in zip(specs, folders, strict=True):
        of_ranks = np.array([[line["loss"] for line in lines] for lines in steps(folder).values()])
        images = [lines[0]["images"] for lines in steps(folder).values()]
        if spec.tensor_parallel:
            assert (spec.data_parallel, images) == (1, [BATCH, 0])
            assert (of_ranks[0] == of_ranks[1]).all()
        losses[case][spec.engine, spec.zero_stage] = of_ranks.mean(0)
    return losses


@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_losses_are_those_of_a_plain_loop(shared, store, case):
    wanted = reference(store, CASES[case][0])[:STEPS]
    gaps = {engine: gap(losses, wanted) for engine, losses in shared[case].items()}
    assert max(gaps.values()) < BOUND, gaps
    assert gap(reference(store, SGD)[:STEPS], reference(store, CLIPPED)[:STEPS]) > 100 * BOUND


def test_bf16_learns_as_fp32_does(shared, store):
    wanted = reference(store, ADAMW)[:STEPS]
    for engine, losses in shared["bf16"].items():
        assert all(math.isfinite(loss) for loss in losses)
        assert 1e-4 < gap(losses, wanted) < 0.05, engine


# Drop path and mixup are drawn by the group, so they are not those of one rank; all else is. The clip binds in the
# first steps and not in the last ones: a wrong norm shows, and so does a wrong scale.
TRAINED = ("optimizer.name=sgd", "lr=0.05", "clip=1.5", "drop_path=0", "mixup=0", "train.max_steps=8", "num_heads=2")
ENGINES = ("engine=ddp", "engine=fsdp", "zero_stage=2", "zero_stage=3")
WEIGHTS = {name: ("tensor_parallel=2", name) for name in ENGINES}
TOKENS = {f"tokens, ZeRO-{stage}": ("sequence_parallel=2", f"zero_stage={stage}") for stage in range(4)}


@pytest.fixture(scope="module")
def trained(store, tmp_path_factory):
    """Two groups of two ranks, each engine from the start and from its checkpoint of half-way, and one rank alone.

    Groups that share tokens train from the start only.
    """
    results = tmp_path_factory.mktemp("trained")

    def training(number, world_size, cases):
        entries = []
        for name, words in cases.items():
            (spec,) = runs(store, *over_tiny((*TRAINED, f"world_size={world_size}", *words)))
            for half in (0, 1) if name in WEIGHTS else (0,):
                resume = f"{name}/0/checkpoints/step00000004" if half else None
                root = f"{name}/{half}"
                plan = Checkpointing(
                    root=f"{root}/checkpoints", export=f"{root}/export", every=4, keep=3, resume=resume
                )
                entries.append(
                    Entry(folder=f"runs/{root}/launch{half}", run_id=spec.run_id, launch=half,
                          spec=spec.model_dump(mode="json"), checkpoints=plan)
                )  # fmt: skip
        return make_round(number, spec, entries, probe()), ""

    alone = {"engine=single": ("engine=single",)}
    serve_each(store, results, [training(0, 4, WEIGHTS | TOKENS), training(1, 1, alone)])
    return results


def learnt(results, name, half=0):
    """Losses by step, evaluations and exported weights."""
    (folder,) = (results / "runs" / name / str(half)).glob("launch*")
    losses = {}
    for lines in steps(folder).values():
        for line in lines:
            losses.setdefault(line["step"], []).append(line["loss"])
    scores = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    weights = load_file(results / name / str(half) / "export" / "model.safetensors")
    return {step: float(np.mean(of_ranks)) for step, of_ranks in losses.items()}, scores, weights


@pytest.mark.parametrize("name", [*WEIGHTS, *TOKENS])
def test_two_groups_of_two_train_the_model_of_one_rank(trained, name):
    losses, scores, weights = learnt(trained, name)
    wanted, expected, exported = learnt(trained, "engine=single")
    assert losses == pytest.approx(wanted, rel=BOUND)
    assert [one["test_images"] for one in scores] == [360, 360]
    assert [one["test_loss"] for one in scores] == pytest.approx([one["test_loss"] for one in expected], rel=1e-5)
    assert weights.keys() == exported.keys()
    for key, weight in exported.items():
        assert float((weights[key] - weight).norm() / weight.norm().clamp(min=1e-3)) < 1e-4, key


@pytest.mark.parametrize("name", ENGINES)
def test_a_checkpoint_goes_on_as_if_nothing_had_been(trained, name):
    losses, scores, weights = learnt(trained, name)
    gone_on, again, exported = learnt(trained, name, 1)
    assert sorted(gone_on) == [4, 5, 6, 7]
    assert gone_on == pytest.approx({step: loss for step, loss in losses.items() if step >= 4}, rel=1e-6)
    assert again[-1]["test_loss"] == pytest.approx(scores[-1]["test_loss"], rel=1e-6)
    for key, weight in weights.items():
        assert exported[key].numpy() == pytest.approx(weight.numpy(), abs=1e-6), key
