"""Faults on real ranks: each ends its own launch only, is tried once more where that helps, and leaves no process."""

import json
import time

import pytest
from ranks import finish, launches, start, steps, worker_processes

pytestmark = [pytest.mark.process, pytest.mark.timeout(280)]

OVER_S = 30
STEPS = "steps=4"
STILL_S = 6


@pytest.fixture(scope="module")
def study(store, tmp_path_factory):
    """Six runs of one round, four of them struck after their third step; two of the faults strike but once."""
    folder = tmp_path_factory.mktemp("faults")
    results = folder / "results"
    faults = (
        f"kill rank=1 step=2 launch=z0-bf16 once={folder}/kill",
        "raise rank=1 step=2 launch=z1-fp32",
        "oom rank=1 step=2 launch=z1-bf16",
        f"hang rank=1 step=2 launch=z2-fp32 once={folder}/hang",
    )
    words = ("world_size=2", "global_batch=8", "zero_stage=0,1,2", "precision=fp32,bf16", STEPS)
    process = start(store, results, *words, f"launch.step_timeout_s={STILL_S}", inject="; ".join(faults))
    code, err = finish(process, timeout_s=240)
    return results, code, err


def ends(results, part):
    """(status, reason) of the launches of a run."""
    return [(one["status"], one["reason"]) for one in launches(results, part).values()]


def struck_to_closed_s(results, part, mark):
    closed = (results / "runs").glob(f"*{part}*/launch0/manifest.json")
    return next(closed).stat().st_mtime - mark.stat().st_mtime


def test_the_runs_that_were_not_struck_are_measured(study):
    results, code, err = study
    assert ends(results, "z0-fp32") == [("ok", None)]
    assert ends(results, "z2-bf16") == [("ok", None)]
    # A run failed twice and is missing: exit status 5, of a worker's error.
    assert code == 5, err
    assert "1 of 6 runs have fewer launches than asked for" in err


def test_a_killed_rank_is_named_and_its_run_tried_again(study):
    results, *_ = study
    first, second = ends(results, "z0-bf16")
    assert first == ("failed", "rank 1 was ended by SIGKILL after step 3 (steady)")
    assert second == ("ok", None)
    assert struck_to_closed_s(results, "z0-bf16", results.parent / "kill") < OVER_S


def test_an_exception_is_named_and_after_two_attempts_given_up(study):
    results, *_ = study
    assert ends(results, "z1-fp32") == [("failed", "rank 1: Injected: asked for by VITSCALE_INJECT")] * 2


def test_out_of_memory_on_one_rank_is_an_outcome_and_not_tried_again(study):
    results, *_ = study
    ((status, reason),) = ends(results, "z1-bf16")
    assert status == "oom"
    assert reason.startswith("rank 1: OutOfMemoryError")


def test_a_hang_ends_with_the_stacks_of_all_ranks(study):
    results, *_ = study
    (status, reason), second = ends(results, "z2-fp32")
    assert status == "timeout"
    assert second == ("ok", None)
    # The other rank waits for it in the same step: both stand still, and that one has begun a collective more.
    assert reason.startswith(f"rank 1 finished no step for {STILL_S} s (launch.step_timeout_s)")
    log = results / reason.split("stacks of all ranks: ")[1]
    stacks = log.read_text()
    assert stacks.count("Current thread") == 2
    assert "_hang" in stacks
    assert struck_to_closed_s(results, "z2-fp32", results.parent / "hang") < OVER_S


@pytest.fixture(scope="module")
def looked_closer(store, tmp_path_factory):
    """Two runs of one round; in the first a rank runs out of memory under the profiler, after the steady window."""
    results = tmp_path_factory.mktemp("closer") / "results"
    words = ("world_size=2", "global_batch=8", "zero_stage=0,1", "steps=48", "depth=2", "measure.profile=true")
    process = start(store, results, *words, inject="oom rank=1 phase=closer step=3 launch=z0")
    code, err = finish(process, timeout_s=240)
    assert code == 0, err
    return results, err


def test_a_rank_without_memory_after_the_steady_window_takes_no_figure_with_it(looked_closer):
    results, err = looked_closer
    (((run_id, launch), manifest),) = launches(results, "z0").items()
    assert (manifest["status"], manifest["reason"], manifest["steps"]) == ("ok", None, 49)
    why = "the ranks ended after the steady window: rank 1: OutOfMemoryError: asked for by VITSCALE_INJECT"
    for field in ("overhead", "silence", "overlap", "memory", "trace", "roofline"):
        assert manifest["notes"][field] == why
        assert all(device.get(field) is None for device in manifest["devices"])
    assert [len(lines) for lines in steps(results / "runs" / run_id / launch).values()] == [49, 49]
    assert {name.split(".")[0] for name in manifest["files"]} == {"run", "steps", "devices", "collectives"}
    assert why in err


def test_the_run_behind_it_is_looked_at_closer_all_the_same(looked_closer):
    results, _ = looked_closer
    (manifest,) = launches(results, "z1").values()
    assert all(device["memory"] and device["overlap"] for device in manifest["devices"])
    runs = json.loads((results / "analysis.json").read_text())["runs"]
    assert [run["valid"] for run in runs] == [True, True]
    assert all(run["shares"]["comm_exposed"] for run in runs)
    assert not list(results.rglob(".settled.json"))


def test_no_process_is_left(study):
    assert worker_processes(study[0]) == []


def test_a_start_that_takes_too_long_is_ended(store, tmp_path):
    process = start(store, tmp_path / "results", "world_size=1", "global_batch=8", STEPS, "launch.start_timeout_s=0.3")
    began = time.monotonic()
    code, err = finish(process)
    assert code == 5, err
    assert time.monotonic() - began < 2 * OVER_S
    assert len(launches(tmp_path / "results")) == 2
    for status, reason in ends(tmp_path / "results", ""):
        assert status == "timeout"
        assert reason.startswith("rank 0 did not finish a first step within 0.3 s (launch.start_timeout_s)")
    assert worker_processes(tmp_path / "results") == []


def test_a_loss_that_is_no_number_is_named_with_its_step(store, tmp_path):
    results = tmp_path / "results"
    process = start(store, results, "world_size=1", "engine=ddp", "global_batch=8", STEPS, "optimizer.lr=1e30,1e-3")
    code, err = finish(process)
    assert code == 5, err
    found = {}
    for (run_id, _), manifest in launches(results).items():
        found.setdefault(run_id, []).append((manifest["status"], manifest["reason"]))
    good, bad = sorted(found.values(), key=len)
    assert good == [("ok", None)]
    assert bad == [("failed", "rank 0: the loss of step 1 is not finite")] * 2
