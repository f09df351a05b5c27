"""Jobs from their submission to their end: what is written down, what is asked, and what a round's end is called."""

import json
import signal
import stat

import pytest

from vitscale.config.study import LaunchSection
from vitscale.errors import LeftRunning, ResultsError, SetupError
from vitscale.launch import jobs
from vitscale.launch.inputs import Inputs
from vitscale.launch.job import RanksOfJob, ended_by_slurm, killed_of
from vitscale.launch.outcome import Queue, RoundEnd
from vitscale.launch.scheduler import State
from vitscale.launch.slurm import Allocation, Slurm, slurm
from vitscale.records.round import Entry, Round

KILLED = """srun: error: n2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=2.0
slurmstepd: error: *** STEP 2.0 ON n1 CANCELLED AT 2026-11-26T18:50:12 ***
srun: error: n1: task 0: Terminated
"""
FAILED = """srun: error: n2: task 1: Exited with exit code 1
srun: launch/slurm: _step_signal: Terminating StepId=3.0
srun: error: n1: task 0: Killed
"""


class FakeScheduler:
    """SLURM as a list of states: each question takes one, the last stays."""

    def __init__(self, *states, refuses=()):
        self.states, self.refuses, self.said = [*states], refuses, []
        self.taken = {}

    def found(self, word):
        return self.taken.get(word, [])

    def submit(self, script, results, environ, word):
        assert word in jobs.unanswered(results)  # on the disk before SLURM is asked
        if any(name in script for name in self.refuses):
            raise SetupError("`sbatch` refused a job")
        assert stat.S_IMODE((results / script).stat().st_mode) == 0o600
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self.said.append(("submit", script))
        return str(16 + len(self.said))

    def state(self, job):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, BaseException):
            raise state
        return State(*state.split("|")) if state else None

    def signal(self, job, number):
        self.said.append((number.name, job))

    def cancel(self, job):
        self.said.append(("cancel", job))
        self.states = ["CANCELLED"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name in ("_ASK_S", "_SOON_S", "_STACKS_S"):
        monkeypatch.setattr(f"vitscale.launch.job.{name}", 0.0)
    monkeypatch.setattr("vitscale.launch.slurm._POLL_S", 0.0)
    monkeypatch.setattr("vitscale.launch.attend._LAST_WORDS_S", 0.0)


def round_of(number=0, world_size=2):
    entry = Entry(folder="runs/a/launch0", run_id="a", launch=0, spec={"threads_per_rank": 1})
    return Round(
        name=f"{number:04d}-w{world_size}", world_size=world_size, nodes=1, ranks_per_node=world_size, device="cpu",
        cores=((0,), (1,)), entries=(entry,),
    )  # fmt: skip


@pytest.fixture
def launcher(tmp_path):
    def make(*states, job_array=False, **more):
        limits = LaunchSection(step_timeout_s=5, job_array=job_array)
        made = Slurm(Inputs(tmp_path / "data", limits=limits, environ={"PATH": "/bin"}))
        made._scheduler = FakeScheduler(*states, **more)
        return made

    return make


def test_a_job_is_written_down_before_it_is_waited_for_and_again_when_it_ended(launcher, tmp_path):
    one, beats = launcher("PENDING", "PENDING", "RUNNING", "COMPLETED"), []
    assert isinstance(one, Queue)

    def watch(beat):
        beats.append(beat.phase)
        assert jobs.unfinished(tmp_path) == {"0000-w2": "17"}

    assert one.run(tmp_path, round_of(), watch) == RoundEnd("ok")
    assert "queued" in beats
    assert jobs.unfinished(tmp_path) == {}
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [(line.get("job"), line.get("ended")) for line in lines] == [(None, None), ("17", None), ("17", "ok")]
    assert Round.read(tmp_path / "rounds/0000-w2/round.json").cores == ()  # those of this machine


def test_ctrl_c_leaves_jobs_running_and_the_same_command_submits_nothing_again(launcher, tmp_path):
    first = launcher("PENDING", KeyboardInterrupt())
    told = first.submit(tmp_path, [round_of(), round_of(1, 1)])
    assert told == "SLURM: 0000-w2 is job 17, 0001-w1 is job 18"
    with pytest.raises(LeftRunning, match="SLURM goes on with job 17, 18") as left:
        first.run(tmp_path, round_of(), lambda beat: None)
    assert left.value.exit_code == 75
    assert "scancel 17 18" in left.value.hint
    second = launcher("COMPLETED")
    assert [round_.name for round_ in second.left(tmp_path)] == ["0000-w2", "0001-w1"]
    for round_ in second.left(tmp_path):
        assert second.run(tmp_path, round_, lambda beat: None).status == "ok"
    assert second._scheduler.said == []
    assert second.left(tmp_path) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_tool_that_is_killed_before_it_hears_a_jobs_number_submits_nothing_twice(launcher, tmp_path, taken):
    killed = launcher("RUNNING")

    def submit(script, results, environ, word):
        killed.word = word
        raise RuntimeError("SIGKILL")

    killed._scheduler.submit = submit
    with pytest.raises(RuntimeError):
        killed.submit(tmp_path, [round_of()])
    with pytest.raises(ResultsError, match="0000-w2"):
        jobs.require_none(tmp_path)  # another launcher keeps out
    one = launcher("COMPLETED")
    one._scheduler.taken = {killed.word: ["23"]} if taken else {}
    left = one.left(tmp_path)
    assert jobs.unfinished(tmp_path) == ({"0000-w2": "23"} if taken else {})
    assert [round_.name for round_ in left] == ["0000-w2"] * taken
    assert jobs.unanswered(tmp_path) == {}
    assert one.run(tmp_path, round_of(), lambda beat: None).status == "ok"
    assert len(one._scheduler.said) == (not taken)


def test_of_rounds_that_were_given_together_each_gets_the_job_of_its_place(launcher, tmp_path):
    word = jobs.note_submitting(tmp_path, ["0000-w2", "0002-w2"])
    one = launcher("RUNNING")
    one._scheduler.taken = {word: ["17_0", "17_1"]}
    one._look_up(tmp_path)
    assert jobs.unfinished(tmp_path) == {"0000-w2": "17_0", "0002-w2": "17_1"}


def test_an_element_is_its_rounds_also_where_earlier_ones_have_left_the_queue(launcher, tmp_path):
    word = jobs.note_submitting(tmp_path, ["0000-w2", "0002-w2", "0004-w2"])
    one = launcher("RUNNING")
    one._scheduler.taken = {word: ["17_2"]}
    one._look_up(tmp_path)
    assert jobs.unfinished(tmp_path) == {"0004-w2": "17_2"}
    assert jobs.unanswered(tmp_path) == {}


def examination(number=0):
    return round_of(number).model_copy(update={"examine": True})


def test_an_examination_that_is_stopped_ends_its_job_and_leaves_those_of_the_study(launcher, tmp_path):
    jobs.note_submitted(tmp_path, {"0007-w2": "3"})
    one = launcher("RUNNING", KeyboardInterrupt(), "RUNNING")
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, examination(), lambda beat: None)
    assert one._scheduler.said[1:] == [("SIGKILL", "17"), ("cancel", "17")]
    assert jobs.unfinished(tmp_path) == {"0007-w2": "3"}


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETED"])
def test_an_examination_that_nobody_waits_for_is_ended_and_no_round_of_a_study(launcher, tmp_path, state):
    killed = launcher("RUNNING")
    killed.submit(tmp_path, [round_of(), examination(1)])
    one = launcher(state)
    jobs.end_leftovers(tmp_path, one)
    assert one._scheduler.said == ([("SIGKILL", "18"), ("cancel", "18")] if state == "RUNNING" else [])
    assert jobs.unfinished(tmp_path) == {"0000-w2": "17"}
    assert [round_.name for round_ in one.left(tmp_path)] == ["0000-w2"]


def test_an_interruption_names_jobs_where_there_are_some(launcher, tmp_path):
    one = launcher("PENDING")

    def stopped(*_):
        raise KeyboardInterrupt

    one._submit = stopped
    with pytest.raises(KeyboardInterrupt):
        one.run(tmp_path, round_of(), lambda beat: None)
    jobs.note_submitted(tmp_path, {"0001-w1": "17"})
    for stopped_at in (
        lambda: one.run(tmp_path, round_of(), lambda beat: None),
        lambda: one.submit(tmp_path, [round_of()]),
    ):
        with pytest.raises(LeftRunning, match="job 17"):
            stopped_at()


def test_what_slurm_refuses_ahead_is_told_when_its_turn_comes(launcher, tmp_path):
    one = launcher("COMPLETED", refuses=("0001-w1",))
    assert one.submit(tmp_path, [round_of(), round_of(1, 1), round_of(2)]) == "SLURM: 0000-w2 is job 17"
    assert one.run(tmp_path, round_of(), lambda beat: None).status == "ok"
    with pytest.raises(SetupError, match="refused a job"):
        one.run(tmp_path, round_of(1, 1), lambda beat: None)
    assert launcher("x", refuses=("w",)).submit(tmp_path, [round_of(3)]) is None


def test_rounds_that_ask_for_the_same_are_elements_of_one_array_each_written_down(launcher, tmp_path):
    rounds = [round_of(), round_of(1, 1), round_of(2, 1), round_of(3)]
    one = launcher("COMPLETED", job_array=True)
    told = one.submit(tmp_path, rounds)
    assert told == "SLURM: 0000-w2 is job 17_0, 0003-w2 is job 17_1, 0001-w1 is job 18_0, 0002-w1 is job 18_1"
    assert one._scheduler.said == [("submit", "rounds/0000-w2/array.sh"), ("submit", "rounds/0001-w1/array.sh")]
    given = {"0000-w2": "17_0", "0003-w2": "17_1", "0001-w1": "18_0", "0002-w1": "18_1"}
    assert jobs.unfinished(tmp_path) == given
    assert one.submit(tmp_path, rounds) is None  # what is known is not handed over again
    assert [round_.name for round_ in launcher("RUNNING").left(tmp_path)] == [*given]
    for round_ in rounds:
        assert one.run(tmp_path, round_, lambda beat: None).status == "ok"
    assert len(one._scheduler.said) == 2
    assert jobs.unfinished(tmp_path) == {}


def test_ctrl_c_names_an_array_by_its_number(launcher, tmp_path):
    one = launcher("PENDING||JobArrayTaskLimit", KeyboardInterrupt(), job_array=True)
    one.submit(tmp_path, [round_of(), round_of(1), round_of(2, 1)])
    with pytest.raises(LeftRunning, match=r"SLURM goes on with job 17, 18$") as left:
        one.run(tmp_path, round_of(), lambda beat: None)
    assert "scancel 17 18 ends" in left.value.hint


def test_of_an_array_that_slurm_does_not_take_the_first_round_is_a_job_and_the_others_follow(launcher, tmp_path):
    rounds = [round_of(), round_of(1, 1), round_of(2, 1), round_of(3)]
    one = launcher("COMPLETED", job_array=True, refuses=("array.sh",))
    assert one.submit(tmp_path, rounds) == "SLURM: 0000-w2 is job 17, 0001-w1 is job 18"
    assert one.run(tmp_path, rounds[0], lambda beat: None).status == "ok"
    assert one.submit(tmp_path, rounds[1:]) == "SLURM: 0003-w2 is job 19"  # one of a world size at a time
    assert one.run(tmp_path, rounds[1], lambda beat: None).status == "ok"
    assert one.submit(tmp_path, rounds[2:]) == "SLURM: 0002-w1 is job 20"


def test_an_element_that_nobody_needs_is_ended_and_no_other(launcher, tmp_path):
    one = launcher("PENDING||JobArrayTaskLimit", job_array=True)
    one.submit(tmp_path, [round_of(), round_of(1), round_of(2)])
    one.withdraw(tmp_path, round_of(1))
    assert one._scheduler.said[1:] == [("SIGKILL", "17_1"), ("cancel", "17_1")]
    assert jobs.unfinished(tmp_path) == {"0000-w2": "17_0", "0002-w2": "17_2"}


def test_an_element_that_was_cancelled_while_it_waited_is_gone_without_a_trace(launcher, tmp_path):
    one = launcher("PENDING||JobArrayTaskLimit", "FORGOTTEN", job_array=True)
    one.submit(tmp_path, [round_of(), round_of(1)])
    end = one.run(tmp_path, round_of(1), lambda beat: None)
    assert end == RoundEnd("killed", "job 17_1 left the queue before it began", again=False)
    (tmp_path / "rounds/0000-w2/stdout.log").touch()
    assert one.run(tmp_path, round_of(), lambda beat: None).status == "failed"  # it ran, nobody knows how it ended


def test_a_script_that_ended_well_is_enough_and_one_that_did_not_is_looked_up(launcher, tmp_path):
    folder = tmp_path / "rounds" / "0000-w2"
    folder.mkdir(parents=True)
    (folder / "status").write_text("0\n")
    assert RanksOfJob(FakeScheduler(None), "17", folder).codes() == [0]
    (folder / "status").write_text("137\n")
    (folder / "stderr.log").write_text(KILLED)
    scheduler = FakeScheduler("RUNNING", "COMPLETING", "COMPLETED")
    ranks = RanksOfJob(scheduler, "17", folder)
    assert [ranks.codes() for _ in range(3)] == [[None], [None], [137]]
    assert ranks.killed() == (1, "SIGKILL", "node `n2`")
    ranks.end()
    assert scheduler.said == []


def test_a_job_whose_node_does_not_see_the_folder_ends_the_study_with_what_to_do(launcher, tmp_path):
    one = launcher("PENDING", "RUNNING", "FAILED")
    end = one.run(tmp_path, round_of(), lambda beat: None)
    told = "job 17 left no word in the results folder, which its nodes have to share"
    assert end[:3] == ("failed", told, "setup")
    assert "`--out`" in end.hint
    assert jobs.unfinished(tmp_path) == {}


def test_where_another_round_has_found_the_folder_a_job_without_a_word_is_one_failure(launcher, tmp_path):
    earlier = tmp_path / "rounds" / "0000-w2"
    earlier.mkdir(parents=True)
    (earlier / "stdout.log").touch()
    end = launcher("RUNNING", "FAILED").run(tmp_path, round_of(1), lambda beat: None)
    assert (end.status, end.kind, end.again) == ("failed", None, True)
    assert "left no word in the results folder" in end.reason
    assert "`--out`" in end.hint


def test_another_node_that_does_not_see_the_folder_is_named_by_what_its_rank_prints(launcher, tmp_path):
    one = launcher("RUNNING", "FAILED")
    folder = tmp_path / "rounds" / "0000-w2"
    folder.mkdir(parents=True)
    (folder / "stdout.log").touch()
    (folder / "status").write_text("1\n")
    told = "host n2 does not see the results folder\n"
    (folder / "stderr.log").write_text(f"{told}Traceback …\nsrun: error: n2: task 1: Exited with exit code 1\n")
    (folder / "failure.rank000.json").write_text('{"kind": "exception", "message": "Connection reset"}')
    end = one.run(tmp_path, round_of(), lambda beat: None)
    assert end[:3] == ("failed", "host `n2` does not see the results folder", "setup")


def test_a_job_that_is_given_up_is_ended_and_waited_for(tmp_path):
    scheduler = FakeScheduler("RUNNING", "RUNNING", "COMPLETING", "CANCELLED")
    RanksOfJob(scheduler, "17", tmp_path).end()
    assert scheduler.said == [("SIGKILL", "17"), ("cancel", "17")]
    assert scheduler.states == ["CANCELLED"]


def test_slurm_that_does_not_answer_is_waited_for(launcher, tmp_path):
    one = launcher(None, None, "RUNNING", None, "COMPLETED")
    assert one.run(tmp_path, round_of(), lambda beat: None).status == "ok"


def test_a_job_that_hangs_is_asked_for_the_stacks_of_its_ranks_and_ended(launcher, tmp_path):
    one = launcher("RUNNING", "RUNNING", "RUNNING", "RUNNING")
    one._inputs = Inputs(tmp_path, limits=LaunchSection(start_timeout_s=0.3), environ={})
    states = one._scheduler.states

    def cancel(job):
        states[:] = ["CANCELLED"]

    one._scheduler.cancel = cancel
    end = one.run(tmp_path, round_of(), lambda beat: None)
    assert end.status == "timeout"
    assert "launch.start_timeout_s" in end.reason
    assert [name for name, _ in one._scheduler.said] == ["submit", "SIGQUIT", "SIGKILL"]


@pytest.mark.parametrize(
    ("state", "status", "words", "again"),
    [
        ("CANCELLED", "killed", "was cancelled", False),
        ("TIMEOUT", "timeout", "time limit", True),
        ("DEADLINE", "timeout", "time limit", True),
        ("PREEMPTED", "killed", "was preempted", True),
        ("NODE_FAIL", "failed", "lost a node: n2", True),
        ("BOOT_FAIL", "failed", "lost a node: n2", True),
        ("OUT_OF_MEMORY", "oom", "host memory", True),
    ],
)
def test_an_end_that_is_not_the_ranks_doing_is_told_by_its_name(state, status, words, again):
    end = ended_by_slurm("17", State(state, "n[1-2]"), "srun: error: Node failure on n2\n")
    assert (end.status, end.again) == (status, again)
    assert (end.kind == "time_limit") == (status == "timeout")
    assert "job 17" in end.reason
    assert words in end.reason


def test_a_job_that_can_never_start_is_taken_back_and_not_tried_again(launcher, tmp_path):
    one = launcher("PENDING||Priority", "PENDING||PartitionTimeLimit")
    assert one.run(tmp_path, round_of(), lambda beat: None) == RoundEnd(
        "failed", "job 17 cannot start, SLURM says PartitionTimeLimit", again=False
    )
    assert ("cancel", "17") in one._scheduler.said
    assert jobs.unfinished(tmp_path) == {}


def test_of_other_ends_the_ranks_know_more():
    assert [ended_by_slurm("17", State(name), "") for name in ("FAILED", "COMPLETED", "FORGOTTEN")] == [None] * 3


def test_srun_tells_the_first_rank_that_a_signal_ended():
    assert killed_of(KILLED) == (1, "SIGKILL", "node `n2`")
    assert killed_of("srun: error: n1: task 0: Segmentation fault (core dumped)\n") == (0, "SIGSEGV", "node `n1`")
    assert killed_of("srun: error: n1: tasks 0-1: Exited with exit code 1\n") is None
    assert killed_of(FAILED) is None
    assert killed_of("") is None


def test_jobs_of_a_folder_keep_others_out_of_it(tmp_path):
    jobs.require_none(tmp_path)
    jobs.note_submitted(tmp_path, {"0000-w2": "17"})
    with pytest.raises(ResultsError, match="job 17") as refused:
        jobs.require_none(tmp_path)
    assert "scancel 17" in refused.value.hint
    jobs.note_ended(tmp_path, "0000-w2", "17", "killed")
    jobs.require_none(tmp_path)


def test_a_torn_line_is_no_job_and_a_damaged_one_is_an_error_with_its_number(tmp_path):
    jobs.note_submitted(tmp_path, {"0000-w2": "17"})
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"round": "0001')
    assert jobs.unfinished(tmp_path) == {"0000-w2": "17"}
    jobs.note_submitted(tmp_path, {"0002-w2": "18"})
    assert jobs.unfinished(tmp_path) == {"0000-w2": "17", "0002-w2": "18"}
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ResultsError, match=r"line 3 of `jobs\.jsonl` is damaged"):
        jobs.unfinished(tmp_path)


def test_within_a_job_rounds_are_steps_of_it(tmp_path):
    inside = Inputs(tmp_path, environ={"SLURM_JOB_ID": "17", "SLURM_PROCID": "0", "SLURM_CONF": "/x", "HF_TOKEN": "x"})
    one = slurm(inside)
    assert isinstance(one, Allocation)
    assert not isinstance(one, Queue)
    words, environ = one.command(tmp_path, round_of())
    assert words[0] == "srun"
    assert "--jobid=17" in words
    assert words[-2:] == ["vitscale.worker", "rounds/0000-w2/round.json"]
    assert environ["SLURM_CONF"] == "/x"
    assert not {"HF_TOKEN", "SLURM_PROCID", "SLURM_JOB_ID"} & {*environ}
    assert isinstance(slurm(Inputs(tmp_path, environ={})), Slurm)
