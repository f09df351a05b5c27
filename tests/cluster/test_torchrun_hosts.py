"""The launcher `env` below torchruns of two hosts, as SkyPilot starts them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ranks import finish, launches, overrides, worker_processes

from vitscale.launch.lab import NAMESPACES, network

pytestmark = [pytest.mark.process, pytest.mark.timeout(120), pytest.mark.usefixtures("kernel")]

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "launchers.md"
WORDS = " ".join(overrides("nodes=2", "world_size=2", "engine=ddp", "global_batch=8", "steps=4"))


def test_what_skypilot_runs_on_each_node_is_one_study_over_both(store, tmp_path):
    recipes = [yaml.safe_load(body) for body in re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S)]
    (script,) = (one["run"] for one in recipes if "num_nodes" in one)
    script = script.replace("nodes=2 world_size=16", WORDS).replace("/shared", str(tmp_path))
    script = f'torchrun() {{ "{sys.executable}" -m torch.distributed.run "$@"; }}\n{script}'
    environ = {key: value for key, value in os.environ.items() if not key.startswith("VITSCALE")}
    environ |= {
        "VITSCALE_DATA": str(store), "GLOO_SOCKET_IFNAME": "eth0", "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }  # fmt: skip
    with network(2, None) as names:
        started = [
            subprocess.Popen(
                ["nsenter", f"--net={NAMESPACES / name}", "--", "bash", "-euc", script],
                env={**environ, "SKYPILOT_NODE_RANK": str(node)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for node, name in enumerate(names)
        ]
        ends = [finish(process) for process in started]
    assert [code for code, _ in ends] == [0, 0], ends
    (manifest,) = launches(tmp_path / "quick").values()
    assert manifest["status"] == "ok"
    assert [(one["rank"], one["node"], one["local_rank"]) for one in manifest["devices"]] == [(0, 0, 0), (1, 1, 0)]
    assert worker_processes(tmp_path / "quick") == []
