"""`vitscale doctor` as a command: the folder it works in, and launchers that start nothing."""

import json

import pytest

from vitscale import workflow
from vitscale.errors import SetupError
from vitscale.launch import jobs


class Unreachable:
    """A launcher whose hosts do not answer."""

    error = SetupError("host `n2` did not answer: Connection refused", "`ssh n2 true` has to work")

    def run(self, results, round_, watch):
        assert (results / ".lock").exists()
        raise self.error


@pytest.fixture
def unreachable(monkeypatch):
    launcher = Unreachable()
    monkeypatch.setattr(workflow, "require_ready", lambda launcher: None)
    monkeypatch.setattr(workflow, "launcher_of", lambda name, loaded, where: launcher)
    return launcher


def test_jobs_at_work_keep_it_out_of_the_studys_folder(vitscale, unreachable, tmp_path):
    folder = tmp_path / "work/results/quick"
    (folder / "runs").mkdir(parents=True)
    jobs.note_submitted(folder, {"0000-w1": "17"})
    ran = vitscale("doctor", "quick", "world_size=1")
    assert ran.code == 10
    assert "job 17" in ran.error
    assert not (folder / "rounds").exists()


def test_without_a_study_all_hosts_of_the_hostfile_are_looked_at_unless_less_is_asked(vitscale, unreachable, tmp_path):
    (tmp_path / "work/hosts.txt").write_text("n1 slots=2\nn2 slots=4\nn3 slots=2\n")
    for words, world in (((), (3, 3, 1)), (("axes.world_size=4", "nodes=2", "protocol=weak"), (4, 2, 2))):
        assert vitscale("doctor", "launch.hostfile=hosts.txt", *words, "--launcher", "hosts").code == 3
        found = json.loads((tmp_path / "work/results/doctor/doctor.json").read_text())
        assert (found["world_size"], found["nodes"], found["ranks_per_node"]) == world


def test_ctrl_c_is_an_interruption_and_leaves_no_report(vitscale, unreachable, tmp_path):
    unreachable.error = KeyboardInterrupt()
    ran = vitscale("doctor", "quick", "world_size=1")
    assert (ran.code, ran.error) == (75, "interrupted")
    assert not (tmp_path / "work/results/quick/doctor.json").exists()


def test_a_host_that_does_not_answer_is_what_is_found(vitscale, unreachable, tmp_path):
    folder = tmp_path / "work/results/quick"
    (folder / "runs").mkdir(parents=True)
    (folder / "doctor.json").write_text('{"healthy": true}')
    ran = vitscale("doctor", "quick", "world_size=1")
    assert ran.code == 3
    found = json.loads((folder / "doctor.json").read_text())
    assert (found["healthy"], found["hosts"], found["together"]) == (False, [], None)
    failed = {one["name"]: (one["text"], one["hint"]) for one in found["checks"] if one["status"] == "failed"}
    assert failed["ranks talk"] == ("host `n2` did not answer: Connection refused", "`ssh n2 true` has to work")
    assert "did not answer" in ran.out
