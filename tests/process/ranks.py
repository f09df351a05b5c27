"""Starting studies and rounds on real ranks, and looking at what they leave."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from vitscale.config.load import load
from vitscale.hardware.probe import probe
from vitscale.hardware.topology import core_sets, sibling_groups
from vitscale.launch.attend import write_round
from vitscale.launch.inputs import Inputs
from vitscale.launch.local import LOOPBACK, Local, of_the_round
from vitscale.launch.processes import Command, begin, end_sessions
from vitscale.records.round import ROUND, Entry, Round
from vitscale.study.grid import Where, build
from vitscale.study.plan import described

SMALL = ("protocol=strong", "model.name=test_vit", "img_size=16", "patch_size=8", "launches=1", "warmup_steps=1")


TINY = (
    "protocol=strong", "model.name=vit_tiny_patch16_224", "img_size=16", "patch_size=8", "depth=2", "embed_dim=48",
    "global_batch=32", "data.images=128", "train.max_steps=12", "train.eval_epochs=1", "train.checkpoint_epochs=1",
    "schedule=cosine", "warmup_epochs=1", "crop=1", "label_smoothing=0.1", "mixup=0.2", "drop_path=0.1",
)  # fmt: skip


def over_tiny(words):
    """`TINY` with these words in place of its own."""
    return list({word.partition("=")[0]: word for word in (*TINY, *words)}.values())


def overrides(*words):
    """`SMALL` with `key=value` words in place of its own."""
    return [f"{key}={value}" for key, value in dict(word.split("=", 1) for word in (*SMALL, *words)).items()]


def runs(store, *words, where=None):
    """The RunSpecs of a small `quick` after overrides, as `vitscale run` makes them."""
    return build(load("quick", overrides(*words)).study, where or Where(probe()), described(store)).runs


def ahead(process_ids):
    """Let sessions of processes go before whatever else this machine does, where the kernel has such and allows it."""
    for process_id in process_ids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{process_id}/autogroup").write_text("-15")


def serve(store, results, specs, environ=None, device="cpu", first=False):
    """One process start for all of `specs`, which have one world size; the round's end and its launch folders.

    With `first` its ranks go before whatever else this machine does.
    """
    world_size, threads = specs[0].world_size, specs[0].threads_per_rank
    machine = probe()
    bound = specs[0].binds_cores
    cores = core_sets(world_size, threads, machine.cores, sibling_groups(machine.cores)) if bound else None
    seen, entries = {}, []
    for spec in specs:
        launch = seen[spec.run_id] = seen.get(spec.run_id, -1) + 1
        folder = f"runs/{spec.run_id}/launch{launch}"
        entries.append(Entry(folder=folder, run_id=spec.run_id, launch=launch, spec=spec.model_dump(mode="json")))
    number = len(list((results / "rounds").glob("*"))) if (results / "rounds").exists() else 0
    round_ = Round(
        name=f"{number:04d}-w{world_size}",
        world_size=world_size,
        nodes=1,
        ranks_per_node=world_size,
        device=device,
        cores=tuple(cores or ()),
        entries=tuple(entries),
    )
    inputs = Inputs(store) if environ is None else Inputs(store, environ=environ)
    hurried = []

    def watch(_beat):
        if first and not hurried:
            hurried.extend(process.pid for process in worker_processes(results))
            ahead(hurried)

    end = Local(inputs).run(results, round_, watch)
    return end, [results / entry.folder for entry in entries]


def start(store, out, *words, inject="", flags=(), prefix=(), **more):
    """`vitscale run quick`, small, in a process of its own, started by the words of `prefix`."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("VITSCALE")}
    environ |= {"VITSCALE_DATA": str(store), **more.pop("environ", {})}
    if inject:
        environ["VITSCALE_INJECT"] = inject
    command = [*prefix, sys.executable, "-m", "vitscale", "run", "quick", *overrides(*words), *flags, "--out", str(out)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def start_training(store, out, *words, inject=""):
    """`vitscale train quick` with a tiny model, in a process of its own."""
    environ = {**os.environ, "VITSCALE_DATA": str(store), "VITSCALE_INJECT": inject}
    command = [sys.executable, "-m", "vitscale", "train", "quick", *over_tiny(words), "--out", str(out)]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, timeout_s=100):
    """Its exit status and standard error, once it is over."""
    try:
        _, err = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    return process.returncode, err


def wait_until(condition, timeout_s, what):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)
    return value


def worker_processes(results):
    """Ranks that work in a results folder."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = "vitscale.worker" in process.cmdline() and Path(process.cwd()) == results.resolve()
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks_ahead(process, results, count):
    """Let the ranks of a study go before whatever else this machine does, once they are there; `process` is its own."""

    def there():
        found = worker_processes(results)
        return process.poll() is not None or (len(found) == count and [rank.pid for rank in found])

    found = wait_until(there, 60, f"{count} ranks")
    ahead(found if isinstance(found, list) else ())
    return process


def launches(results, part=""):
    """(run_id, number) -> manifest of the launches whose run_id holds `part`."""
    paths = sorted((results / "runs").glob(f"*{part}*/launch*/manifest.json"))
    return {(path.parts[-3], path.parts[-2]): json.loads(path.read_text()) for path in paths}


def steps(folder):
    """rank -> its step lines."""
    found = {}
    for path in sorted(folder.glob("steps.*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            found.setdefault(line["rank"], []).append(line)
    return found


def digests(folder):
    """Path -> sha256 and time of change of every file below a folder."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Turn(NamedTuple):
    """See `forking.py`."""

    script: str
    world_size: int
    words: tuple
    environ: dict


def on_ranks(script, out, turns, first=False):
    """Of each turn what its ranks left in `<rank>.json`, rank by rank; one process start for all.

    Args:
        script: module of ranks; its `main` is called with the turn's folder and the turn's words.
        out: folder of all turns.
        turns: `(world size, word, …)`; the ranks of a turn meet at a file.
        first: whether the ranks go before whatever else this machine does.
    """
    given, left = [], []
    for number, (world_size, *words) in enumerate(turns):
        folder = out / str(number)
        folder.mkdir()
        environ = {"VITSCALE_STORE": str(folder / "store")}
        given.append(Turn(script, world_size, (str(folder), *words), environ))
        left.append([folder / f"{rank}.json" for rank in range(world_size)])
    forked(out, given, first)
    return [[json.loads(path.read_text()) for path in of_ranks] for of_ranks in left]


def serve_each(store, results, rounds):
    """Serve rounds one after another, each by ranks of its own; one process start for all.

    Args:
        store: the data folder.
        results: where the rounds are served.
        rounds: each with the fault that is injected, or "".
    """
    turns = []
    for round_, fault in rounds:
        folder = write_round(results, round_)
        environ = Inputs(store).variables() | of_the_round(folder, round_, LOOPBACK) | {"VITSCALE_INJECT": fault}
        turns.append(Turn("served", round_.world_size, (f"rounds/{round_.name}/{ROUND}",), environ))
    forked(results, turns)


def forked(out, turns, first=False):
    """Let `forking.py` take these turns in a folder."""
    path, said = out / "turns.json", out / "ranks.log"
    path.write_text(json.dumps([turn._asdict() for turn in turns]))
    environ = {**os.environ, "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": LOOPBACK, "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(Path(__file__).with_name("forking.py")), str(path)]
    with said.open("wb") as log:
        process = begin(Command(words, environ | {"OMP_NUM_THREADS": "1"}), out, log, log)
    if first:
        ahead([process.pid])
    try:
        code = process.wait()
    finally:
        end_sessions([process])
    assert code == 0, said.read_text(errors="replace")[-3000:]
