"""Real training: as if it had never been stopped, evaluated exactly, stopped together, and never poisoned."""

import json
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from ranks import (
    digests,
    finish,
    launches,
    over_tiny,
    runs,
    serve_each,
    start_training,
    wait_until,
    worker_processes,
)
from safetensors.torch import load_file

from vitscale.hardware.probe import probe
from vitscale.records import checkpoint
from vitscale.records.round import Checkpointing, Entry
from vitscale.study.rounds import make_round, next_entry

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


def weights(export):
    return load_file(export / "model.safetensors")


def losses(*folders):
    """(step, rank) -> loss of launches; a step taken again after a checkpoint must repeat its loss."""
    found = {}
    for path in sorted(path for folder in folders for path in folder.glob("steps.*.jsonl")):
        for line in path.read_text().splitlines():
            one = json.loads(line)
            key = (one["step"], one["rank"])
            assert found.setdefault(key, one["loss"]) == one["loss"], f"step {key} gave another loss"
    return found


def evaluations(launch):
    lines = [json.loads(line) for line in (launch / "eval.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def last_launch(results):
    return sorted(results.glob("runs/*/launch*"))[-1]


TRAINED = {
    "zero0": ("zero_stage=0", "ema=0.9"),
    "zero1": ("zero_stage=1",),
    "zero2": ("zero_stage=2", "ema=0.9", "grad_accum=2"),
    "zero3": ("zero_stage=3",),
    "ddp": ("engine=ddp", "ema=0.9", "grad_accum=2"),
    "fsdp": ("engine=fsdp", "precision=bf16", "optimizer.name=sgd"),
    "lamb": ("engine=ddp", "optimizer.name=lamb", "engine.channels_last=true", "engine.activation_checkpointing=true"),
}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def interrupted(request, store, tmp_path_factory):
    """Every engine and ZeRO stage trained whole, and stopped by a signal to one rank and gone on with.

    Each by ranks of its own: equal runs one after another in one process differ in the last bit now and then.
    """
    results, ranks, machine = tmp_path_factory.mktemp("interrupted"), request.param, probe()

    def rounds_of(number, name):
        """Stopped, whole, and gone on with."""
        (spec,) = runs(store, *over_tiny((f"world_size={ranks}", *TRAINED[name])))
        for launch, kind in enumerate(("cut", "whole", "cut")):
            root, given = f"{kind}/{name}", spec.model_dump(mode="json")
            plan = Checkpointing(
                root=f"{root}/checkpoints", export=f"{root}/export", every=4, keep=2,
                resume=f"{root}/checkpoints/step00000008" if launch == 2 else None,
            )  # fmt: skip
            folder = f"runs/{name}/launch{launch}"
            entry = Entry(folder=folder, run_id=spec.run_id, launch=launch, spec=given, checkpoints=plan)
            fault = f"stop rank={ranks - 1} step=5" if launch == 0 else ""
            yield make_round(3 * number + launch, spec, [entry], machine), fault

    rounds = [one for number, name in enumerate(TRAINED) for one in rounds_of(number, name)]
    serve_each(store, results, rounds)
    return results


@pytest.mark.parametrize("name", TRAINED)
def test_a_stopped_training_goes_on_as_if_nothing_had_been(interrupted, name):
    cut, whole, gone_on = (interrupted / f"runs/{name}/launch{launch}" for launch in range(3))
    stopped = json.loads((cut / "manifest.json").read_text())
    assert stopped["status"] == "killed"
    assert stopped["reason"].startswith("asked to stop after step 8 of 12")
    assert checkpoint.newest(interrupted / "whole" / name / "checkpoints").name == "step00000012"
    ends = {rank: max(step for step, of in losses(cut) if of == rank) for _, rank in losses(cut)}
    assert set(ends.values()) == {7}, "all ranks stop after the same step"
    assert losses(cut, gone_on) == losses(whole)
    assert len({step for step, _ in losses(whole)}) == 12
    assert evaluations(gone_on) == evaluations(whole)
    ended = [json.loads((one / "manifest.json").read_text()) for one in (whole, gone_on)]
    assert ended[1]["notes"]["resumed_after_step"] == 8
    assert all(device["memory"]["optimizer_bytes"] > 0 for one in ended for device in one["devices"])
    a, b = (weights(interrupted / kind / name / "export") for kind in ("whole", "cut"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory):
    """A training from an empty folder to its end, and what the same command did once more."""
    results = tmp_path_factory.mktemp("finished") / "out"
    words = ("world_size=1", "train.keep=2", "train.max_steps=24")
    code, first = finish(start_training(store, results, *words))
    assert code == 0, first
    before = digests(results / "runs")
    code, again = finish(start_training(store, results, *words))
    assert code == 0, again
    return SimpleNamespace(**locals())


def test_the_exported_model_is_timms_and_gives_the_evaluated_accuracy(finished, store):
    export = finished.results / "export"
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        depth=2,
        embed_dim=48,
        num_classes=10,
        checkpoint_path=str(export / "model.safetensors"),
    ).eval()
    by_hub = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    from vitscale.data.reader import open_split
    from vitscale.worker.pipeline import Raw, prepare

    test = open_split("digits", "test", store)
    every = np.arange(len(test))
    labels = torch.from_numpy(test.take_labels(every))
    images = prepare(Raw(torch.from_numpy(test.take(every)), labels, None), 16, torch.float32)
    with torch.no_grad():
        logits, again = model(images), by_hub(images)
    assert torch.equal(logits, again)
    last = evaluations(last_launch(finished.results))[-1]
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(last["test_accuracy"], abs=1e-12)
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(last["test_loss"], rel=1e-5)
    assert json.loads((export / "config.json").read_text())["architecture"] == "vit_tiny_patch16_224"
    assert "Test accuracy" in (export / "README.md").read_text()


# Steps too small to change a weight: what is evaluated is the same at every rank count.
STILL = ("lr=1e-12", "weight_decay=0", "warmup_epochs=0")


def test_every_test_image_counts_once_at_any_rank_count(store, tmp_path):
    """Fault 36."""
    rounds = []
    for world_size in (1, 2, 3):
        batch = 33 if world_size == 3 else 32
        words = (f"world_size={world_size}", f"global_batch={batch}", "data.images=132", "train.max_steps=1", *STILL)
        (spec,) = runs(store, *over_tiny(words))
        rounds.append((make_round(world_size, spec, [next_entry(tmp_path, spec)], probe()), ""))
    serve_each(store, tmp_path, rounds)
    seen = [evaluations(tmp_path / round_.entries[0].folder)[-1] for round_, _ in rounds]
    assert {one["test_images"] for one in seen} == {360}
    assert seen[1]["test_accuracy"] == seen[0]["test_accuracy"]
    assert seen[1]["test_loss"] == pytest.approx(seen[0]["test_loss"], rel=1e-5)


def test_a_rank_that_is_killed_costs_a_restart_and_no_bit_of_the_result(train, tmp_path):
    """Fault 18, while training."""
    words = ("world_size=2", "engine=ddp")
    whole = train(*words, out="whole")
    code, err = finish(whole)
    assert code == 0, err
    code, err = finish(train(*words, inject=f"kill rank=1 step=5 once={tmp_path}/mark"))
    assert code == 0, err
    killed = "rank 1 was ended by SIGKILL after step 6 (steady)"
    told = f"training ended: {killed}; going on from checkpoint `step00000004`, after step 4"
    assert f"{told} (restart 1 of 2)" in err
    first, second = launches(tmp_path / "out").values()
    assert (first["status"], first["reason"]) == ("failed", killed)
    assert second["status"] == "ok"
    assert (second["notes"]["resumed_after_step"], second["notes"]["restart"]) == (4, 1)
    taken = losses(*(tmp_path / "out").glob("runs/*/launch*"))
    expected = losses(last_launch(tmp_path / "whole"))
    assert taken == {step: expected[step] for step in taken}
    assert {step for step, _ in taken} >= set(range(4, 12))
    a, b = (weights(tmp_path / name / "export") for name in ("whole", "out"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_where_every_start_meets_the_same_end_training_ends(train, tmp_path):
    code, err = finish(train("world_size=1", "engine=ddp", "train.restarts=5", inject="kill rank=0 step=5"))
    assert code == 5, err
    assert len(launches(tmp_path / "out")) == 2, "the second start wrote no checkpoint"


@pytest.mark.parametrize(("victim", "number"), [("parent", signal.SIGINT), ("rank", signal.SIGUSR1)])
def test_a_signal_makes_all_ranks_save_at_the_same_step(train, tmp_path, victim, number):
    """Fault 23."""
    out = tmp_path / "out"
    process = train("world_size=2", "train.max_steps=2000", "train.checkpoint_epochs=400")
    wait_until(lambda: list(out.glob("runs/*/launch0/eval.jsonl")), 100, "the first evaluation")
    if victim == "parent":
        process.send_signal(number)
    else:
        worker_processes(out)[-1].send_signal(number)
    code, err = finish(process)
    assert code == 75, err
    assert worker_processes(out) == []
    found = checkpoint.complete(out / "checkpoints")
    assert len(found) == 1
    saved = checkpoint.inspect(found[0])
    taken = losses(last_launch(out))
    last = {rank: max(step for step, of in taken if of == rank) for rank in (0, 1)}
    assert last == {0: saved.step - 1, 1: saved.step - 1}
    (manifest,) = launches(out).values()
    assert manifest["status"] == "killed"
    assert f"after step {saved.step} of 2000" in manifest["reason"]


def test_a_second_signal_ends_everything_at_once_and_tears_nothing(train, tmp_path):
    """Fault 23, of somebody who does not wait."""
    out = tmp_path / "out"
    words = ("world_size=2", "train.max_steps=2000", "train.checkpoint_epochs=1")
    process = train(*words)
    wait_until(lambda: checkpoint.complete(out / "checkpoints"), 100, "the first checkpoint")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    code, err = finish(process)
    assert time.monotonic() - sent < 20
    assert code == 75, err
    assert "Traceback" not in err
    assert worker_processes(out) == []
    for folder in checkpoint.complete(out / "checkpoints"):
        checkpoint.inspect(folder)


def test_a_loss_that_is_not_finite_ends_all_ranks_and_poisons_no_checkpoint(train, tmp_path):
    """Fault 22."""
    code, err = finish(train("world_size=2", "lr=1e30", "clip=0", "train.checkpoint_epochs=0.25"))
    assert code == 8, err
    assert "not finite" in err
    assert worker_processes(tmp_path / "out") == []
    for folder in checkpoint.complete(tmp_path / "out" / "checkpoints"):
        checkpoint.inspect(folder)
        state = torch.load(next(folder.rglob("mp_rank_00_model_states.pt")), weights_only=False)
        assert all(torch.isfinite(value).all() for value in state["module"].values())


def test_samples_of_a_training_that_was_killed_tell_steps_from_pauses(trained):
    lines = (last_launch(trained) / "devices.node000.jsonl").read_text().splitlines()
    windows = [json.loads(line)["window"] for line in lines]
    assert list(dict.fromkeys(windows)) == ["setup", "steady", "evaluate", "checkpoint"]


def test_another_run_is_refused_with_what_differs_and_nothing_is_changed(refused, trained, tmp_path):
    """Fault 27."""
    shutil.copytree(trained, tmp_path / "out")
    before = digests(tmp_path / "out")
    for words, said in (
        (("world_size=2",), "`world_size` 1 -> 2"),
        (("world_size=1", "zero_stage=1"), "`zero_stage` 0 -> 1"),
        (("world_size=1", "lr=0.5"), "`optimizer.lr` 0.001 -> 0.5"),
        (("world_size=1", "train.max_steps=16"), "`train.max_steps` 12 -> 16"),
    ):
        assert said in refused(*words)
    assert digests(tmp_path / "out") == before


def test_a_training_stopped_in_its_last_steps_is_evaluated_and_finished(train, tmp_path):
    code, err = finish(train("world_size=1", "train.max_steps=3", "train.eval_epochs=9", inject="stop rank=0 step=0"))
    assert code == 75, err
    code, err = finish(train("world_size=1", "train.max_steps=3", "train.eval_epochs=9"))
    assert code == 0, err
    assert [one["step"] for one in evaluations(last_launch(tmp_path / "out"))] == [3]
    assert (tmp_path / "out" / "export" / "model.safetensors").exists()


def test_a_half_made_checkpoint_is_invisible(train, trained, tmp_path):
    """Fault 24."""
    shutil.copytree(trained, tmp_path / "out")
    (checkpoint.newest(tmp_path / "out" / "checkpoints") / "COMPLETE").unlink()
    code, err = finish(train("world_size=1"))
    assert code == 0, err
    assert "after step 4" in err
    assert list((tmp_path / "out" / "checkpoints").glob(".*")) == []


def test_an_empty_folder_starts_fresh_and_says_so_and_a_finished_one_does_nothing(finished):
    """Fault 26."""
    assert "no checkpoint found: starting from the beginning" in finished.first
    assert "trained to its end already" in finished.again
    assert digests(finished.results / "runs") == finished.before


def test_only_the_newest_and_the_best_checkpoints_are_kept(finished):
    kept = [int(path.name.removeprefix("step")) for path in checkpoint.complete(finished.results / "checkpoints")]
    best = max(evaluations(last_launch(finished.results)), key=lambda one: (one["test_accuracy"], -one["step"]))["step"]
    assert kept == sorted({20, 24, best})


def test_fine_tuning_resizes_position_embeddings_and_drops_another_head(train, tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_classes=7)
    from safetensors.torch import save_file

    save_file(source.state_dict(), tmp_path / "start.safetensors")
    start = f"train.init={tmp_path}/start.safetensors"
    code, err = finish(train("world_size=1", "engine=ddp", start, "train.max_steps=1", "lr=1e-12", "weight_decay=0"))
    assert code == 0, err
    after = weights(tmp_path / "out" / "export")
    for name, value in source.state_dict().items():
        if name not in ("pos_embed", "head.weight", "head.bias"):
            assert torch.allclose(after[name], value, atol=1e-9), name
    assert after["pos_embed"].shape == (1, 5, 48)
    resolved = json.loads(next((tmp_path / "out").glob("runs/*/launch0/run.json")).read_text())
    assert len(resolved["init"]) == 64
    assert str(tmp_path) not in json.dumps(resolved)
