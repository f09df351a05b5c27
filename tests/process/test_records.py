"""What a real study leaves on disk: the documented files, whole, private, and nothing about whose machine it was."""

import hashlib
import json
import re
import socket

import pytest
from ranks import finish, launches, start, steps

pytestmark = [pytest.mark.process, pytest.mark.alone, pytest.mark.timeout(240)]

WARMUP, STEADY = 2, 4
CANARY = "canary-5e1f9a"
SECRETS = {
    name: f"{CANARY}-{name.lower()}"
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "USER", "LOGNAME", "HOSTNAME")
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two world sizes, two stages; home, data and results below one telling folder; open umask; traps to import."""
    home = tmp_path_factory.mktemp(f"{CANARY}-home")
    folder = home / "results" / "mine"
    (folder / "runs").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    for name in ("torch.py", "json.py", "timm.py"):
        (folder / name).write_text(f"open({str(home / 'imported')!r}, 'w').close()\nraise SystemExit('imported')\n")
    words = ("world_size=1,2", "zero_stage=0,3", "global_batch=16", f"warmup_steps={WARMUP}", f"steps={STEADY}")
    process = start(home / "data", folder, *words, environ={"HOME": str(home), **SECRETS}, umask=0)
    code, err = finish(process)
    assert code == 0, err
    return folder


@pytest.fixture(scope="module")
def finished(results):
    """(folder, manifest) of each launch."""
    found = launches(results)
    assert len(found) == 4
    return [(results.joinpath("runs", *key), manifest) for key, manifest in found.items()]


def test_the_folders_hold_the_documented_files(results, finished):
    for folder, manifest in finished:
        ranks = range(manifest["layout"]["world_size"])
        wanted = {"run.json", "manifest.json", "devices.node000.jsonl"}
        wanted |= {f"steps.rank{rank:03d}.jsonl" for rank in ranks}
        wanted |= {"collectives.jsonl"} if len(ranks) > 1 else set()
        assert {path.name for path in folder.iterdir()} == wanted
    for folder in (results / "rounds").iterdir():
        ranks = range(int(folder.name[-1]))
        wanted = {"round.json", "stdout.log", "stderr.log", "heartbeat.node000"}
        wanted |= {"links.json"} if len(ranks) > 1 else set()
        assert {path.name for path in folder.iterdir()} == wanted
    top = {path.name for path in results.iterdir()} - {"torch.py", "json.py", "timm.py"}
    assert top == {".lock", "study.toml", "resolved.json", "plan.json", "analysis.json", "rounds", "runs", "report"}


def test_the_manifest_comes_last_and_vouches_for_the_rest(finished):
    for folder, manifest in finished:
        others = {path.name: path for path in folder.iterdir() if path.name != "manifest.json"}
        assert manifest["files"] == {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in others.items()
        }
        written = (folder / "manifest.json").stat().st_mtime_ns
        assert all(path.stat().st_mtime_ns <= written for path in others.values())
        assert manifest["status"] == "ok"
        assert manifest["source"] == "measured"
        assert manifest["parity"]["ok"], manifest["parity"]


def test_every_rank_has_a_line_for_every_step(finished):
    for folder, manifest in finished:
        spec = json.loads((folder / "run.json").read_text())
        of_ranks = steps(folder)
        assert list(of_ranks) == list(range(spec["world_size"]))
        assert manifest["steps"] == WARMUP + STEADY
        for rank, lines in of_ranks.items():
            assert [line["step"] for line in lines] == list(range(WARMUP + STEADY))
            assert [line["window"] for line in lines] == ["warmup"] * WARMUP + ["steady"] * STEADY
            assert {line["rank"] for line in lines} == {rank}
            assert {line["images"] for line in lines} == {spec["micro_batch"] * spec["grad_accum"]}
            for line in lines:
                parts = sum(line[f"{part}_s"] for part in ("data", "forward", "backward", "optimizer"))
                assert 0 < parts <= line["step_s"] * (1 + 1e-9)


def test_the_cost_of_measuring_is_in_the_records_and_in_the_analysis(results, finished):
    for _, manifest in finished:
        assert "overhead" not in manifest["notes"]
        for device in manifest["devices"]:
            found = device["overhead"]
            assert found["marks"] == 5  # data, forward, backward, optimizer, and the step's end
            assert 0 < found["mark_s"] < found["heartbeat_s"] < 0.01
            several = manifest["layout"]["world_size"] > 1
            assert (found["synchronous"] + found["asynchronous"] > 0) == several
            assert (found["synchronous_s"] is not None, found["asynchronous_s"] is not None) == (several, several)
            assert 0 <= found["sampling_share"] < 0.1
    runs = json.loads((results / "analysis.json").read_text())["runs"]
    assert all(0 < run["overhead_share"] < 0.5 for run in runs)


def test_a_node_samples_its_load_and_its_ranks_memory(finished):
    for folder, manifest in finished:
        lines = [json.loads(line) for line in (folder / "devices.node000.jsonl").read_text().splitlines()]
        windows = [line["window"] for line in lines]
        assert list(dict.fromkeys(windows)) == ["setup", "warmup", "steady"]
        assert windows == sorted(windows, key=("setup", "warmup", "steady").index)
        stepped = sum(manifest["times"][f"{window}_s"] for window in ("warmup", "steady"))
        assert lines[-1]["time_s"] >= stepped * 0.98
        last = lines[-1]["host"]
        # The kernel counts the machine by ticks and a process by its clock: they differ by some percent.
        assert 0 < last["rank_cpu_s"] <= 1.3 * last["cpu_s"] + 0.1
        peaks = [device["memory_peak_bytes"] for device in manifest["devices"]]
        assert 0.3 * sum(peaks) < last["rank_rss_bytes"] <= 1.01 * sum(peaks)
        assert all(line["gpus"] == [] for line in lines)
        unread = {field for field in ("core_clock_hz", "energy_j", "swapped_in_bytes") if last[field] is None}
        assert {key for key in manifest["notes"] if key.startswith("host.")} == {f"host.{field}" for field in unread}


def test_run_json_is_the_planned_spec(results, finished):
    planned = {run["run_id"]: run["spec"] for run in json.loads((results / "plan.json").read_text())["runs"]}
    assert planned.keys() == {folder.parent.name for folder, _ in finished}
    for folder, manifest in finished:
        assert json.loads((folder / "run.json").read_text()) == planned[manifest["run_id"]]


def test_a_rank_has_the_same_threads_and_cores_at_every_world_size(finished):
    threads, cores = set(), set()
    for _, manifest in finished:
        own = [set(device["cores"]) for device in manifest["devices"]]
        assert sum(map(len, own)) == len(set().union(*own)), "two ranks share a core"
        threads |= {device["threads"] for device in manifest["devices"]}
        cores |= {len(one) for one in own}
    assert len(threads) == 1
    assert cores in (threads, {0})  # none where this machine has fewer cores than ranks


def test_folders_are_the_owners_alone_whatever_the_umask(results):
    folders = [results, *(path for path in results.rglob("*") if path.is_dir())]
    assert {str(path): oct(path.stat().st_mode & 0o777) for path in folders if path.stat().st_mode & 0o077} == {}


def test_no_file_tells_whose_machine_it_was(results):
    host = socket.gethostname()
    told = [CANARY.encode()] + ([host.encode()] if len(host) > 5 and host != "localhost" else [])
    pattern = re.compile(b"|".join(rb"(?<![\w-])" + re.escape(text) for text in told))
    files = [
        path for path in results.rglob("*") if path.is_file() and path.name not in ("torch.py", "json.py", "timm.py")
    ]
    assert len(files) > 20
    found = {str(path.relative_to(results)): match[0] for path in files if (match := pattern.search(path.read_bytes()))}
    assert found == {}


def test_modules_that_lie_in_the_results_folder_are_not_imported(results):
    assert not (results.parents[1] / "imported").exists()
