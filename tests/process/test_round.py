"""One process start serves several runs, and each of them finds the ranks as the first one did."""

import json
import statistics

import pytest
from ranks import runs, serve, steps, worker_processes

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

# Large enough that weights and optimizer states of four engines (4 x 86 MB) would show if they stayed.
LARGER = ("model.name=vit_tiny_patch16_224", "steps=2", "global_batch=16", "world_size=1,2")
HELD_BYTES = 150e6


@pytest.fixture(scope="module")
def served(store, tmp_path_factory):
    """ZeRO 1, 3, then 0, 1, 2, 3, then 0 again on two ranks of one process start."""
    results = tmp_path_factory.mktemp("round")
    stages = [spec for spec in runs(store, *LARGER, "zero_stage=0,1,2,3") if spec.world_size == 2]
    end, folders = serve(store, results, [stages[stage] for stage in (1, 3, 0, 1, 2, 3, 0)])
    assert end.status == "ok", end.reason
    return results, folders


def manifests(folders):
    return [json.loads((folder / "manifest.json").read_text()) for folder in folders]


def test_one_process_start_serves_every_run(served):
    results, folders = served
    assert [path.name for path in (results / "rounds").iterdir()] == ["0000-w2"]
    found = manifests(folders)
    assert [one["status"] for one in found] == ["ok"] * 7
    assert {one["round"] for one in found} == {"0000-w2"}
    # Only the first run had to wait for the imports.
    assert found[0]["times"]["process_start_s"] > 0
    assert [one["times"]["process_start_s"] for one in found[1:]] == [None] * 6


def test_the_link_is_timed_once_before_the_first_run(served):
    results, _ = served
    (path,) = results.rglob("links.json")
    links = json.loads(path.read_text())
    assert path.parent.name == "0000-w2"
    assert (links["world_size"], links["nodes"], links["link"]) == (2, 1, None)
    assert {one["operation"] for one in links["timings"]} >= {"all_reduce"}
    for one in links["timings"]:
        assert one["algorithm_bytes_per_s"] == pytest.approx(one["bytes"] / statistics.median(one["times_s"]))
        assert one["bus_bytes_per_s"] <= one["algorithm_bytes_per_s"]  # of two ranks


def test_memory_comes_back_between_runs(served):
    _, folders = served
    found = manifests(folders)
    if "memory_peak_bytes" in found[0]["notes"]:
        pytest.skip(reason="this system cannot reset a process's peak memory")
    # Between two equal runs with four engines between them. The first two runs load what stays loaded: code of ZeRO
    # and buffers that are made once.
    for before, after in zip(found[2]["devices"], found[6]["devices"], strict=True):
        assert after["memory_peak_bytes"] - before["memory_peak_bytes"] < HELD_BYTES


def test_a_run_does_not_depend_on_those_before_it(served):
    _, folders = served
    losses = [[line["loss"] for line in steps(folder)[0]] for folder in folders]
    # Not to the last bit: the order in which a kernel adds may follow the alignment of its buffers.
    for first, again in ((0, 3), (1, 5), (2, 6)):
        assert losses[again] == pytest.approx(losses[first], rel=2e-6)


def test_no_rank_outlives_its_round(served):
    assert worker_processes(served[0]) == []
