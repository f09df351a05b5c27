"""ZeRO-Offload in the grid: off is no other run, and what DeepSpeed does not offload is skipped with its rule."""

import pytest
from test_grid import grid, machine

from vitscale.errors import UsageError
from vitscale.study import offload
from vitscale.study.grid import Where

GPUS = Where(machine(gpus=2))
OPTIMIZER, PARAMETERS = (f"deepspeed.zero_optimization.offload_{name}.device" for name in ("optimizer", "param"))


def test_offload_to_nowhere_is_no_other_run():
    plain = [run.run_id for run in grid(zero_stage=1).runs]
    assert [run.run_id for run in grid(zero_stage=1, swept={OPTIMIZER: ["none"]}).runs] == plain


def test_on_a_cpu_there_is_nothing_to_offload():
    made = grid(zero_stage=[1, 2], world_size=2, swept={OPTIMIZER: ["none", "cpu"]})
    assert [(run.zero_stage, run.deepspeed) for run in made.runs] == [(1, {}), (2, {})]
    assert {skip.reason for skip in made.skipped} == {
        f"`{OPTIMIZER} = cpu`: with `device = cpu` the state lies in the host's memory already (leave it out)"
    }


@pytest.mark.parametrize(
    ("path", "device", "stage", "rule"),
    [
        (OPTIMIZER, "cpu", 0, "needs ZeRO-1, and `zero_stage = 0`"),
        (OPTIMIZER, "nvme", 2, "needs ZeRO-3, and `zero_stage = 2`"),
        (PARAMETERS, "cpu", 2, "needs ZeRO-3, and `zero_stage = 2`"),
        (PARAMETERS, "nvme", 3, "needs `deepspeed.zero_optimization.offload_param.nvme_path`: a folder on the NVMe"),
    ],
)
def test_what_deepspeed_does_not_offload_is_refused(path, device, stage, rule):
    with pytest.raises(UsageError, match=rule):
        grid(zero_stage=stage, world_size=2, where=GPUS, swept={path: [device]})


def test_nvme_needs_what_deepspeed_builds_its_io_with(monkeypatch, tmp_path):
    (tmp_path / "libaio.h").touch()
    folder = PARAMETERS.replace("device", "nvme_path")
    given = {"zero_stage": 3, "world_size": 2, "where": GPUS, "swept": {PARAMETERS: ["nvme"], folder: ["/nvme"]}}
    monkeypatch.setattr(offload, "find_library", lambda name: "libaio.so.1")
    monkeypatch.setattr(offload, "_HEADERS", (tmp_path / "none.h",))
    with pytest.raises(UsageError, match="needs libaio and its header, which are not found here"):
        grid(**given)
    monkeypatch.setattr(offload, "_HEADERS", (tmp_path / "libaio.h",))
    monkeypatch.setattr(offload.shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"is built by g\+\+ and ninja"):
        grid(**given)
    monkeypatch.setattr(offload.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert len(grid(**given).runs) == 1


def test_gpus_offload_from_zero_1_on_and_labels_say_what():
    made = grid(zero_stage=[0, 1, 2, 3], world_size=2, where=GPUS, swept={OPTIMIZER: ["none", "cpu"]})
    assert [run.zero_stage for run in made.runs if run.deepspeed] == [1, 2, 3]
    assert "offload_optimizer cpu, zero_stage 3, 2 GPUs" in made.labels().values()


def test_offload_belongs_to_deepspeed():
    made = grid(engine="ddp", world_size=2, swept={OPTIMIZER: ["none", "cpu"]})
    assert len(made.runs) == 1
    assert made.skipped == ()
