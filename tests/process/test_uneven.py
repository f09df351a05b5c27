"""Unequal shares on real ranks: the result is the even split's, and a proportional split is chosen once for a run."""

import json
from pathlib import Path

import pytest
from ranks import launches, on_ranks, runs, serve, steps

pytest.importorskip("torch")

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

RANKS = Path(__file__).with_name("uneven_ranks.py")
BOUND = 1e-5
UPDATE = ("optimizer.name=sgd", "optimizer.lr=0.1", "optimizer.clip=1.0")


def evens(store, world_size, accum, *words):
    """Name -> RunSpec of the engines that take unequal shares, with equal ones."""
    asked = runs(
        store,
        f"world_size={world_size}",
        f"global_batch={24 * accum}",
        f"grad_accum={accum}",
        "engine=ddp,deepspeed",
        "zero_stage=0,1,2",
        *words,
    )
    return {f"{one.engine}{one.zero_stage if one.zero_stage is not None else ''}": one for one in asked}


def compared(store, out, specs, split):
    """What rank 0 of `uneven_ranks.py` found."""
    documents = {name: spec.model_dump(mode="json") for name, spec in specs.items()}
    (out / "specs.json").write_text(json.dumps(documents))
    (out / "split.json").write_text(json.dumps(split))
    return on_ranks(RANKS, out, len(split), str(store))[0]


@pytest.mark.parametrize(("accum", "split"), [(1, [19, 5]), (2, [3, 21]), (1, [14, 1, 9])])
def test_losses_and_weights_are_those_of_the_even_split(store, tmp_path, accum, split):
    found = compared(store, tmp_path, evens(store, len(split), accum, *UPDATE), split)
    assert len(found) == 4
    for name, one in found.items():
        assert max(one["weighted"].values()) < BOUND, (name, one)
        assert one["plain"]["weights"] > 100 * BOUND, (name, one)


def test_the_first_launch_chooses_for_all_launches_of_a_run(store, tmp_path):
    words = ("world_size=2", "engine=ddp", "global_batch=48", "steps=6")
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
