"""Unequal shares on real ranks: the result is the even split's, and a proportional split is chosen once for a run."""

import json

import pytest
from ranks import launches, on_ranks, runs, serve, steps

from vitscale.records.collectives import COLLECTIVES

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

BOUND = 1e-5
UPDATE = ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.clip=1.0")


def cases(store, split, accum, *engines, micro_steps=None):
    """Name -> the RunSpec of the even split, the images by rank, and in how many micro-steps each takes them."""
    words = (f"world_size={len(split)}", f"global_batch={sum(split) * accum}", f"grad_accum={accum}", *UPDATE)
    return {
        f"{one.engine} {one.zero_stage}, {split} in {micro_steps} x {accum}": {
            "spec": one.model_dump(mode="json"),
            "split": split,
            "micro_steps": micro_steps,
        }
        for one in runs(store, *words, *engines)
    }


EVERY = ("engine=ddp,deepspeed,fsdp", "zero_stage=0,1,2,3")
ASKED = {
    2: (([3, 21], 2, *EVERY), ([19, 5], 1, "engine=ddp,deepspeed", "zero_stage=2")),
    3: (([14, 1, 9], 2, "engine=ddp"),),
}
# Where gradients are reduced after the last micro-step only, ranks may have unlike numbers of them.
IN_PARTS = ([3, 21], 1, "engine=ddp,deepspeed", "zero_stage=0,1"), [1, 3]
OVERLAPPED = ([20, 4], 2, "engine=deepspeed", "zero_stage=0", "engine.overlap_reduce=true"), [2, 1]


def test_losses_and_weights_are_those_of_the_even_split(store, tmp_path):
    turns = []
    for ranks, asked in ASKED.items():
        given = {name: case for one in asked for name, case in cases(store, *one).items()}
        if ranks == 2:
            for words, micro_steps in (IN_PARTS, OVERLAPPED):
                given |= cases(store, *words, micro_steps=micro_steps)
        turns.append((ranks, given, str(store)))
    (of_two, *_), (of_three, *_) = on_ranks("uneven_ranks", tmp_path, turns)
    assert (len(of_two), len(of_three)) == (12, 1)
    for name, one in {**of_two, **of_three}.items():
        assert max(one["weighted"].values()) < BOUND, (name, one)
        assert one["plain"]["weights"] > 100 * BOUND, (name, one)


def test_the_first_launch_chooses_for_all_launches_of_a_run(store, tmp_path):
    words = ("world_size=2", "engine=ddp", "global_batch=48", "steps=4")
    (even,), (asked,) = runs(store, *words), runs(store, *words, "engine.split=proportional")
    (parts,) = runs(store, *words, "engine.split=proportional", "engine.bucket_mb=1")
    choose(tmp_path, parts, {"micro_batches": [8, 40], "micro_steps": [1, 5]})
    slow = {"VITSCALE_INJECT": "slow rank=1 factor=6"}
    end, folders = serve(store, tmp_path, [asked, asked, even, parts], slow)
    assert end.status == "ok", end.reason
    told = [manifest["split"] for manifest in launches(tmp_path, asked.run_id).values()]
    assert told[0] == told[1] == json.loads((folders[0].parent / "split.json").read_text())
    fast, slowed = told[0]["micro_batches"]
    assert fast + slowed == 48
    assert slowed < fast
    seen = [steps(folder) for folder in folders]
    assert {line["images"] for line in seen[0][0]} == {fast}
    assert {line["images"] for line in seen[0][1]} == {slowed}
    for own in (seen[0], seen[3]):
        assert losses(own) == pytest.approx(losses(seen[2]), rel=BOUND)
    # A rank that takes its share in micro-steps of the other's size holds as much as the other, and sends as much.
    assert [[line["images"] for line in lines] for lines in seen[3].values()] == [[8] * 5, [40] * 5]
    (in_parts,) = launches(tmp_path, parts.run_id).values()
    assert in_parts["split"]["micro_steps"] == [1, 5]
    once, more = (one["memory"]["activations_bytes"] for one in in_parts["devices"])
    assert once == more
    assert carried(folders[3])["all_reduce"] == carried(folders[2])["all_reduce"]


def choose(root, spec, split):
    """Leave a split where a run's launches find the one that its first chose."""
    folder = root / "runs" / spec.run_id
    folder.mkdir(parents=True)
    (folder / "split.json").write_text(json.dumps(split))


def carried(folder):
    """Bytes of a step by operation."""
    lines = [json.loads(line) for line in (folder / COLLECTIVES).read_text().splitlines()]
    return {line["operation"]: line["bytes_per_step"] for line in lines}


def losses(by_rank):
    """Mean loss of each step's images."""
    return [
        sum(line["loss"] * line["images"] for line in lines) / sum(line["images"] for line in lines)
        for lines in zip(*by_rank.values(), strict=True)
    ]
