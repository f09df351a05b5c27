"""What a start of the launcher `env` leaves to others."""

from vitscale import starting, workflow


def test_only_runs_that_no_start_has_measured_are_left_to_another(simulated, tmp_path):
    loaded, where = workflow.resolve("quick", ["hardware.name=h100", "world_size=1,8"], starting.LauncherName.simulate)
    plan = workflow.make_plan(loaded, where, prepare=False)
    own = [run for run in plan.grid.runs if run.world_size == 1]
    told = "2 of 4 runs are for another start: processes to start: 8"
    assert starting.of_other_starts(plan, own, tmp_path / "new") == told
    assert starting.of_other_starts(plan, own, simulated) is None
