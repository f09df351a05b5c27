"""The axis `backend`: the device's own is no other run, and what torch has not is skipped with its rule."""

import pytest
from test_grid import grid, machine

from vitscale.errors import UsageError
from vitscale.study import backends
from vitscale.study.grid import Where

GPUS = Where(machine(gpus=2))


def test_the_devices_own_backend_is_no_other_run():
    plain = [run.run_id for run in grid().runs]
    assert [run.run_id for run in grid(backend=["auto", "gloo"]).runs] == plain
    assert {run.torch_backend for run in grid().runs} == {"gloo"}
    assert {run.torch_backend for run in grid(backend="nccl", where=GPUS).runs} == {"nccl"}


@pytest.mark.parametrize(
    ("backend", "where", "rule"),
    [
        ("nccl", None, "`backend = nccl` sends from GPUs, and `device = cpu`"),
        ("gloo", GPUS, r"has no all_gather of GPU tensors .* whatever the engine sends"),
    ],
)
def test_a_backend_that_does_not_reach_the_device_is_refused(backend, where, rule):
    with pytest.raises(UsageError, match=rule):
        grid(backend=backend, where=where)


def test_mpi_is_skipped_as_this_torch_has_it_not():
    torch = pytest.importorskip("torch.distributed")
    assert backends._built_with("gloo") == torch.is_gloo_available()
    assert backends._built_with("nccl") == torch.is_nccl_available()
    assert backends._built_with("mpi") == torch.is_mpi_available()


@pytest.mark.parametrize("there", [True, False])
def test_mpi_is_a_run_where_torch_has_it(monkeypatch, tmp_path, there):
    (tmp_path / "lib").mkdir()
    name = b"ProcessGroupMPI" if there else b"ProcessGroupGloo"
    (tmp_path / "lib" / "libtorch_python.so").write_bytes(b"\x7fELF " + name)
    spec = type("Found", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(backends, "find_spec", lambda _: spec)
    made = grid(backend=["gloo", "mpi"], world_size=2)
    assert [run.torch_backend for run in made.runs] == (["gloo", "mpi"] if there else ["gloo"])
    assert len({run.process_start for run in made.runs}) == len(made.runs)
    if not there:
        assert [skip.reason for skip in made.skipped] == [
            "`backend = mpi`: the installed torch is built without it, as the wheels are "
            "(torch built from source beside an MPI, or backend=gloo)"
        ]
        assert (
            made.skipped[0].label == "strong, deepspeed, zero_stage 0, fp32, backend mpi, global_batch 64, 2 processes"
        )
