"""What `python -m benchmarks cluster_kills` finds to strike, with processes and jobs that stand for real ones."""

import os
import random
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from benchmarks import cluster_kills
from benchmarks.cluster_kills import Blow, Campaign, Study, strike_agent, strike_job
from benchmarks.clusters import Place
from benchmarks.figure import Failed
from benchmarks.killing import agents_of

from vitscale.hardware.position import Position
from vitscale.launch import jobs
from vitscale.records.round import Beat, Heartbeat

AGENT = "import subprocess, sys; subprocess.run([sys.executable, '-P', '-m', 'vitscale.worker'], cwd=sys.argv[1])"
WORKER = "import sys; print('here', flush=True); sys.stdin.read()"


@pytest.fixture
def agent(tmp_path):
    """An agent that works in another folder than its rank, as sshd starts it."""
    package, folder = tmp_path / "fake/vitscale", tmp_path / "results"
    (package / "launch").mkdir(parents=True)
    folder.mkdir()
    for name, text in (("__init__", ""), ("worker", WORKER), ("launch/__init__", ""), ("launch/agent", AGENT)):
        (package / f"{name}.py").write_text(text)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "fake")}
    environ |= Position(1, 0, 2, 1, "vitscale").variables()
    words = [sys.executable, "-P", "-m", "vitscale.launch.agent", str(folder)]
    with subprocess.Popen(words, cwd=tmp_path, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"here\n"
        yield process, Study(psutil.Process(), folder)
        process.kill()
        process.stdin.close()


def test_an_agent_is_found_by_its_ranks(agent):
    process, study = agent
    assert [*study.ranks] == [1]
    assert [one.pid for one in agents_of(study.ranks.values())] == [process.pid]
    assert Study(study.parent, study.folder.parent).ranks == {}
    assert strike_agent(study, random.Random(0)) is not None
    assert process.wait(5) == -9


def test_the_job_that_is_waited_for_is_struck_once_it_has_spoken(tmp_path, monkeypatch):
    struck, study = [], Study(psutil.Process(), tmp_path)
    monkeypatch.setattr(cluster_kills.subprocess, "run", lambda words, **_: struck.append(words))
    assert strike_job(study, random.Random(0)) is None
    for number, job in enumerate(("17", "18", "19")):
        jobs.note_submitted(tmp_path, {f"{number:04d}-w2": job})
    jobs.note_ended(tmp_path, "0000-w2", "17", "ok")
    assert strike_job(study, random.Random(0)) is None
    (tmp_path / "rounds/0001-w2").mkdir(parents=True)
    Heartbeat(tmp_path / "rounds/0001-w2", 0, 2).beat(Beat(0, "steady", 3, 40, None))
    assert strike_job(study, random.Random(0)) == "cancelled"
    assert struck == [["scancel", "18"]]


def test_a_campaign_that_strikes_nothing_ends(tmp_path, monkeypatch):
    blow = Blow("agent", "hosts", (), lambda study, rng: None)
    campaign = Campaign(tmp_path, Place("hosts"), [blow], 3, random.Random(0))
    monkeypatch.setattr(campaign, "_start", lambda folder, once: 0)
    monkeypatch.setattr(cluster_kills, "kills", SimpleNamespace(short_of=lambda folder: 0))
    with pytest.raises(Failed, match="`hosts` in turn, and nothing was struck"):
        campaign.carry()
    assert campaign.studies == cluster_kills.IDLE_STUDIES
