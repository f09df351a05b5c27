"""Training whose ranks take unequal shares goes on from a checkpoint as if it had never been stopped."""

import json

import pytest
import torch
from ranks import over_tiny, runs, serve_each, steps
from safetensors.torch import load_file

from vitscale.hardware.probe import probe
from vitscale.records import checkpoint
from vitscale.records.round import Checkpointing, Entry
from vitscale.study.rounds import make_round

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

SLOW = "slow rank=1 factor=200"  # far more than what else runs here, a pass of so small a model being 3 ms
ENDS = 8


def losses(*launches):
    """Step -> loss and images of each rank; a step that two launches took is the later one's."""
    found = {}
    for launch in launches:
        for rank, lines in steps(launch).items():
            found |= {(line["step"], rank): (line["loss"], line["images"]) for line in lines}
    return found


def test_a_proportional_split_that_is_stopped_goes_on_with_the_same_shares_and_losses(store, tmp_path):
    words = ("world_size=2", "engine=ddp", "engine.split=proportional", "mixup=0", "drop_path=0", "ema=0.9")
    (spec,) = runs(store, *over_tiny((*words, f"train.max_steps={ENDS}")))

    def training(launch, kind, resume=None):
        root = f"{kind}/checkpoints"
        plan = Checkpointing(root=root, export=f"{kind}/export", every=4, keep=1, resume=resume)
        folder, given = f"runs/a/launch{launch}", spec.model_dump(mode="json")
        entry = Entry(folder=folder, run_id=spec.run_id, launch=launch, spec=given, checkpoints=plan)
        return make_round(launch, spec, [entry], probe())

    rounds = [
        (training(0, "cut"), f"{SLOW}; stop rank=1 step=2"),
        # Of equal ranks, which alone would take the same.
        (training(1, "cut", "cut/checkpoints/step00000004"), ""),
        (training(2, "whole"), ""),
    ]
    serve_each(store, tmp_path, rounds)
    cut, gone_on, whole = (tmp_path / f"runs/a/launch{launch}" for launch in range(3))
    chosen = json.loads((cut.parent / "split.json").read_text())
    fast, slowed = chosen["micro_batches"]
    assert fast > slowed
    assert checkpoint.newest(tmp_path / "whole/checkpoints").name == f"step{ENDS:08d}"
    manifests = [json.loads((launch / "manifest.json").read_text()) for launch in (cut, gone_on, whole)]
    assert [one["status"] for one in manifests] == ["killed", "ok", "ok"]
    assert [one["split"] for one in manifests] == [chosen] * 3
    assert 0 < manifests[1]["notes"]["resumed_after_step"] < ENDS
    assert {of[1] for (_, rank), of in losses(whole).items() if rank == 1} == {slowed}
    assert len(losses(whole)) == 2 * ENDS
    assert losses(cut, gone_on) == losses(whole)
    a, b = (load_file(tmp_path / kind / "export/model.safetensors") for kind in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
