"""The launcher `env` under a real torchrun: one study, several starts, and an end for everyone."""

import json
import os
import subprocess
import sys

import psutil
import pytest
from ranks import finish, launches, overrides, worker_processes

pytestmark = [pytest.mark.process, pytest.mark.timeout(200)]

WORDS = overrides("world_size=1,2", "global_batch=8", "steps=4", "engine=ddp")


def torchrun(store, results, processes, inject=""):
    """`torchrun -m vitscale run quick --launcher env`, small."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("VITSCALE")}
    environ |= {"VITSCALE_DATA": str(store), "VITSCALE_INJECT": inject}
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    command = [*starter, "vitscale", "run", "quick", *WORDS, "--launcher", "env", "--out", str(results)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def agents(results):
    """Processes of the tool that were started for a results folder."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(results) in (one.info["cmdline"] or ())]


@pytest.fixture(scope="module")
def started(store, tmp_path_factory):
    """Started with 2 processes, of which the second's worker is killed once; then with 1."""
    results = tmp_path_factory.mktemp("starts") / "results"
    first = finish(torchrun(store, results, 2, f"kill rank=1 step=2 once={results}.mark"), 150)
    found = launches(results)
    left = worker_processes(results), agents(results)
    return results, first, found, left, finish(torchrun(store, results, 1))


def test_a_killed_rank_of_another_process_is_named_and_its_run_measured_again(started):
    _, (code, err), found, *_ = started
    assert code == 0, err
    assert [(one["status"], one["reason"], one["layout"]["world_size"]) for one in found.values()] == [
        ("failed", "rank 1 was ended by SIGKILL after step 3 (steady)", 2),
        ("ok", None, 2),
    ]


def test_runs_of_another_world_are_left_to_another_start(started):
    results, (_, err), _, _, (code, second) = started
    assert "1 of 2 runs are for another start: processes to start: 1\n" in err
    assert code == 0, second
    assert "for another start" not in second  # the first has measured them
    worlds = [one["layout"]["world_size"] for one in launches(results).values() if one["status"] == "ok"]
    assert sorted(worlds) == [1, 2]
    runs = json.loads((results / "analysis.json").read_text())["runs"]
    assert sorted(run["world_size"] for run in runs if run["launches"]) == [1, 2]


def test_a_world_that_no_run_has_is_refused_and_every_process_ends(store, tmp_path):
    process = torchrun(store, tmp_path / "results", 3)
    code, err = finish(process)
    assert code != 0
    assert "torchrun started 3 processes, 3 on each host: no run of the study has as many" in err
    assert "hint: processes to start: 1; 2" in err
    assert not list(tmp_path.rglob("manifest.json"))
    assert agents(tmp_path / "results") == []


def test_no_process_is_left(started):
    assert started[3] == ([], [])
