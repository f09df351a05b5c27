"""Unequal shares on real ranks: the result is the even split's, and a proportional split is chosen once for a run."""

import json

import pytest
from ranks import launches, on_ranks, runs, serve, steps

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

BOUND = 1e-5
UPDATE = ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.clip=1.0")


def cases(store, split, accum, *engines):
    """Name -> the RunSpec of the even split, and the micro-batches by rank."""
    words = (f"world_size={len(split)}", f"global_batch={sum(split) * accum}", f"grad_accum={accum}", *UPDATE)
    return {
        f"{one.engine} {one.zero_stage}, {split} x {accum}": {"spec": one.model_dump(mode="json"), "split": split}
        for one in runs(store, *words, *engines)
    }


EVERY = ("engine=ddp,deepspeed,fsdp", "zero_stage=0,1,2,3")
ASKED = {
    2: (([3, 21], 2, *EVERY), ([19, 5], 1, "engine=ddp,deepspeed", "zero_stage=2")),
    3: (([14, 1, 9], 2, "engine=ddp"),),
}


def test_losses_and_weights_are_those_of_the_even_split(store, tmp_path):
    turns = []
    for ranks, asked in ASKED.items():
        given = {name: case for one in asked for name, case in cases(store, *one).items()}
        turns.append((ranks, given, str(store)))
    (of_two, *_), (of_three, *_) = on_ranks("uneven_ranks", tmp_path, turns)
    assert (len(of_two), len(of_three)) == (8, 1)
    for name, one in {**of_two, **of_three}.items():
        assert max(one["weighted"].values()) < BOUND, (name, one)
        assert one["plain"]["weights"] > 100 * BOUND, (name, one)


def test_the_first_launch_chooses_for_all_launches_of_a_run(store, tmp_path):
    words = ("world_size=2", "engine=ddp", "global_batch=48", "steps=4")
    (even,), (asked,) = runs(store, *words), runs(store, *words, "engine.split=proportional")
    slow = {"VITSCALE_INJECT": "slow rank=1 factor=6"}
    end, folders = serve(store, tmp_path, [asked, asked, even], slow)
    assert end.status == "ok", end.reason
    told = [manifest["split"] for manifest in launches(tmp_path, asked.run_id).values()]
    assert told[0] == told[1] == json.loads((folders[0].parent / "split.json").read_text())
    fast, slowed = told[0]["micro_batches"]
    assert fast + slowed == 48
    assert slowed < fast
    seen = [steps(folder) for folder in folders]
    assert {line["images"] for line in seen[0][0]} == {fast}
    assert {line["images"] for line in seen[0][1]} == {slowed}
    for ours, same in zip(losses(seen[0]), losses(seen[2]), strict=True):
        assert ours == pytest.approx(same, rel=BOUND)


def losses(by_rank):
    """Mean loss of each step's images."""
    return [
        sum(line["loss"] * line["images"] for line in lines) / sum(line["images"] for line in lines)
        for lines in zip(*by_rank.values(), strict=True)
    ]
