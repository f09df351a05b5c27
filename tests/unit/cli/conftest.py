import pytest


@pytest.fixture
def simulated(vitscale, tmp_path):
    """A results folder of a simulated study."""
    folder = tmp_path / "simulated"
    ran = vitscale("run", "quick", "--launcher", "simulate", "hardware.name=h100", "world_size=1,8", "--out", folder)
    assert ran.code == 0, ran.err
    return folder
