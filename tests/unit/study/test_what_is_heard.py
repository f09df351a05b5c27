"""What is heard of a round besides its steps."""

import pytest
from test_doctor_checks import A100, LINKS, runs, timing
from test_link_checks import SIZES_OF_A100

from vitscale.records.links import LINKS as LINKS_FILE
from vitscale.records.round import LISTENS, Beat, Entry, Round, read_listens
from vitscale.records.writer import write_json
from vitscale.study.follow import Follow


class Lines:
    def __init__(self):
        self.lines = []

    def message(self, line):
        self.lines.append(line)


def rounds(tmp_path, hosts, nodes=2):
    for number in (0, 1):
        name = f"{number:04d}-w{nodes}"
        folder = tmp_path / "rounds" / name
        folder.mkdir(parents=True)
        write_json(folder / LISTENS, {"hosts": hosts})
        yield Round(name=name, world_size=nodes, nodes=nodes, ranks_per_node=1, device="cpu", cores=(), entries=())


def test_where_ranks_of_several_hosts_listen_is_told_once(tmp_path):
    observer, told = Lines(), set()
    for round_ in rounds(tmp_path, [["eth0:40001", "all:40002"], ["ib0:40003"]]):
        follow = Follow(tmp_path, round_, {}, observer, told)
        follow.beat(Beat(0, "setup", 0, 0, None))
        follow.beat(Beat(0, "steady", 1, 4, None))
    where = "3 ports, on every interface, `eth0`, `ib0`"
    assert observer.lines == [f"ranks of 2 hosts listen on {where}; whoever reaches them is trusted"]


def test_of_one_host_or_before_the_ranks_are_together_nothing_is_told(tmp_path):
    observer = Lines()
    one, _ = rounds(tmp_path, [["lo:40001"]], nodes=1)
    Follow(tmp_path, one, {}, observer).beat(Beat(0, "setup", 0, 0, None))
    two = one.model_copy(update={"nodes": 2, "name": "0007-w2"})
    Follow(tmp_path, two, {}, observer).beat(Beat(0, "setup", 0, 0, None))
    assert observer.lines == []
    (tmp_path / "rounds" / one.name / LISTENS).write_text("{")
    assert read_listens(tmp_path / "rounds" / one.name) is None


def heard(tmp_path, bus_bytes_per_s, *words, changes=({}, {}), size=20_000_000, **where):
    """What is said of two rounds of one world whose links give so much."""
    words = words if where else ("world_size=3", "nodes=3", *words)
    (run,) = runs(*words, **where)
    spec, observer, told = run.model_dump(mode="json"), Told(), set()
    entry = Entry(folder="runs/a/launch0", run_id=run.run_id, launch=0, spec=spec)
    for round_, changed in zip(rounds(tmp_path, [], nodes=3), changes, strict=True):
        links = LINKS.model_copy(update={"timings": (timing(bus_bytes_per_s, size),), **changed})
        write_json(tmp_path / "rounds" / round_.name / LINKS_FILE, links.model_dump(mode="json"))
        follow = Follow(tmp_path, round_.model_copy(update={"entries": (entry,)}), {}, observer, told)
        follow.beat(Beat(0, "setup", 0, 0, None))
        follow.beat(Beat(0, "steady", 1, 4, None))
    return [line for line in observer.lines if "listen" not in line]


class Told(Lines):
    def launch_started(self, *words):
        self.lines.append("a launch")

    def progress(self, *words):
        """Not said again."""


def test_links_far_below_their_rate_are_told_once_before_the_first_launch(tmp_path):
    line = (
        "the links give 26 % of what is expected (link = 1gbit): an all-reduce of 19.1 MiB has 30.0 MB/s of 117 MB/s; "
        "`vitscale doctor` looks for the slow one"
    )
    assert heard(tmp_path, 30e6, "link=1gbit") == [line, "a launch", "a launch"]


@pytest.mark.parametrize("changed", [{"link": "1gbit"}, {"backend": "mpi"}])
def test_links_of_another_rate_or_backend_are_told_by_themselves(tmp_path, changed):
    assert len(heard(tmp_path, 30e6, "link=1gbit", changes=({}, changed))) == 4


@pytest.mark.parametrize(("size", "rate"), SIZES_OF_A100)
def test_sound_gpus_below_their_data_sheet_are_not_told(tmp_path, size, rate):
    words, of_gpus = ("world_size=8", "device=cuda"), {"world_size": 8, "nodes": 1, "device": A100}
    found = heard(tmp_path, rate, *words, changes=(of_gpus, of_gpus), size=size, gpus=8, lab=False)
    assert found == ["a launch", "a launch"]


def test_sound_links_and_links_of_an_unknown_rate_are_not_told(tmp_path):
    assert heard(tmp_path / "sound", 110e6, "link=1gbit") == ["a launch", "a launch"]
    assert heard(tmp_path / "unknown", 1e6) == ["a launch", "a launch"]
