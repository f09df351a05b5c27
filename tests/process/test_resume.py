"""Being stopped in the middle, and going on: nothing is lost, nothing is done twice, nobody is left behind."""

import signal
import time
from types import SimpleNamespace

import pytest
from ranks import digests, finish, launches, start, wait_until, worker_processes

from vitscale.records.round import read_heartbeats

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

WORDS = ("world_size=2", "global_batch=8", "zero_stage=0,1", "steps=4")
# The second run of the round stands still in the middle of its steady window.
STILL = "hang rank=0 step=2 launch=z1"


def begin(store, results):
    """The study, at the moment when its first launch is finished and its second one stands still."""
    process = start(store, results, *WORDS, inject=STILL)

    def stands_still():
        assert process.poll() is None, process.communicate()[1]
        folder = results / "rounds" / "0000-w2"
        beats = read_heartbeats(folder, 1, 2)
        return all(beat and (beat.entry, beat.phase, beat.step) == (1, "steady", 3) for beat in beats)

    wait_until(stands_still, 90, "the second launch")
    assert len(worker_processes(results)) == 2
    return process


@pytest.fixture(scope="module")
def killed(store, tmp_path_factory):
    """Another command meets the folder in use; then the first one is killed and run again, twice."""
    results = tmp_path_factory.mktemp("resume") / "results"
    process = begin(store, results)
    finished = results / "runs" / next(iter(launches(results, "z0")))[0]
    before = digests(results)
    refused = finish(start(store, results, *WORDS))
    untouched = digests(results) == before

    process.kill()
    process.communicate()
    died = time.monotonic()
    wait_until(lambda: not worker_processes(results), 10, "the end of the ranks")
    ranks_ended_s = time.monotonic() - died

    first = digests(finished)
    again = finish(start(store, results, *WORDS))
    after = digests(finished)
    whole, rounds = digests(results / "runs"), sorted(path.name for path in (results / "rounds").iterdir())
    once_more = finish(start(store, results, *WORDS))
    return SimpleNamespace(**locals())


def test_ranks_end_by_themselves_when_their_parent_is_killed(killed):
    assert killed.ranks_ended_s < 5


def test_the_same_command_measures_what_is_missing(killed):
    code, err = killed.again
    assert code == 0, err
    assert [one["status"] for one in launches(killed.results, "z0").values()] == ["ok"]
    buried, measured = launches(killed.results, "z1").values()
    assert (buried["status"], buried["reason"]) == ("killed", "its process ended before the launch was finished")
    assert measured["status"] == "ok"


def test_finished_launches_stay_as_they_are(killed):
    assert {"launch0/run.json", "launch0/manifest.json", "launch0/steps.rank000.jsonl"} <= killed.first.keys()
    assert killed.after == killed.first


def test_when_all_is_there_nothing_is_started(killed):
    code, err = killed.once_more
    assert code == 0, err
    assert digests(killed.results / "runs") == killed.whole
    assert sorted(path.name for path in (killed.results / "rounds").iterdir()) == killed.rounds
    assert len(killed.rounds) == 2


def test_a_folder_in_use_is_refused_and_left_alone(killed):
    code, err = killed.refused
    assert code == 10
    assert "another vitscale is working in" in err
    assert killed.untouched


def test_ctrl_c_ends_everything_and_says_how_to_go_on(store, tmp_path):
    """As SIGTERM in `test_loopback.py`."""
    results = tmp_path / "results"
    process = begin(store, results)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    code, err = finish(process, timeout_s=30)
    assert time.monotonic() - sent < 20
    assert code == 75, err
    assert "hint: the same command goes on with what is missing" in err
    assert "Traceback" not in err
    assert worker_processes(results) == []
    assert [one["status"] for one in launches(results, "z0").values()] == ["ok"]
    assert [one["status"] for one in launches(results, "z1").values()] == ["killed"]
