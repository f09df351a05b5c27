"""Recipes of docs/guides/launchers.md for other people's starters: what they start is a study that can be planned."""

import re
import subprocess
from pathlib import Path

import pytest
import typer.main

pytest.importorskip("torch")

import yaml
from torch.distributed.run import get_args_parser

from vitscale import cli
from vitscale.config.load import load
from vitscale.data.catalog import DatasetFacts
from vitscale.hardware.probe import Gpu, Machine
from vitscale.study.grid import Images, build
from vitscale.study.where import Where

PAGE = Path(__file__).parents[3] / "docs" / "guides" / "launchers.md"
RECIPES = [yaml.safe_load(body) for body in re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)]
DIGITS = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")


def planned(words, monkeypatch, environ=None):
    """What a torchrun with these words would start: its own arguments, those of `vitscale run`, and the runs."""
    for name, value in (environ or {}).items():
        monkeypatch.setenv(name, value)
    given = get_args_parser().parse_args(words)
    assert (given.module, given.training_script) == (True, "vitscale")
    verb, *rest = given.training_script_args
    parsed = typer.main.get_command(cli.app).commands[verb].make_context(verb, rest).params
    assert (verb, parsed["launcher"]) == ("run", "env")
    gpus = (Gpu("NVIDIA A100-SXM4-80GB", 80 << 30),) * int(given.nproc_per_node)
    machine = Machine(96, tuple(range(96)), 1 << 40, "a CPU", gpus, None, None)
    study = load(parsed["study"], parsed["overrides"]).study
    return given, parsed, build(study, Where(machine, elsewhere=True), lambda section: DIGITS).runs


def as_started(given, runs):
    """Every run has the world that is started: as many hosts, and as many ranks on each."""
    assert runs
    assert {(run.nodes, run.ranks_per_node) for run in runs} == {(int(given.nnodes), int(given.nproc_per_node))}


def test_skypilots_nodes_start_the_world_that_the_study_has(monkeypatch):
    (recipe,) = (one for one in RECIPES if "num_nodes" in one)
    gpus = recipe["resources"]["accelerators"].partition(":")[2]
    environ = {
        "SKYPILOT_NUM_NODES": str(recipe["num_nodes"]), "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": gpus,
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }  # fmt: skip
    script = 'torchrun() { printf "%s\\0" "$@"; }\n' + recipe["run"]
    ran = subprocess.run(["bash", "-euc", script], env=environ, check=True, capture_output=True, text=True)
    given, parsed, runs = planned(ran.stdout.split("\0")[:-1], monkeypatch)
    as_started(given, runs)
    assert (given.node_rank, given.master_addr, given.master_port) == (1, "10.0.0.1", 29500)
    (mount,) = recipe["volumes"]
    assert all(str(path).startswith(f"{mount}/") for path in (parsed["out"], recipe["envs"]["VITSCALE_DATA"]))


def test_a_trainjob_starts_the_world_that_the_study_has(monkeypatch):
    (recipe,) = (one for one in RECIPES if one.get("kind") == "TrainJob")
    trainer, (patch,) = recipe["spec"]["trainer"], recipe["spec"]["runtimePatches"]
    starter, *words = [*trainer["command"], *trainer["args"]]
    assert starter == "torchrun"
    told = {
        "PET_NNODES": str(trainer["numNodes"]),
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "vitscale-node-0-0.vitscale",
    }
    given, parsed, runs = planned(words, monkeypatch, told)
    as_started(given, runs)
    assert (given.node_rank, given.master_addr) == (1, told["PET_MASTER_ADDR"])
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == int(given.nproc_per_node)
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    (data,) = trainer["env"]
    assert all(str(path).startswith(f"{mounts['shared']}/") for path in (parsed["out"], data["value"]))
