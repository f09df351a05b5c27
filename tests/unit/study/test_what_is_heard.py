"""What is heard of a round besides its steps."""

from vitscale.records.round import LISTENS, Beat, Round, read_listens
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
    for round_ in rounds(tmp_path, [["eth0:40001", "eth0:40002"], ["ib0:40003"]]):
        follow = Follow(tmp_path, round_, {}, observer, told)
        follow.beat(Beat(0, "setup", 0, 0, None))
        follow.beat(Beat(0, "steady", 1, 4, None))
    assert observer.lines == ["ranks of 2 hosts listen on 3 ports, on `eth0`, `ib0`; whoever reaches them is trusted"]


def test_of_one_host_or_before_the_ranks_are_together_nothing_is_told(tmp_path):
    observer = Lines()
    one, _ = rounds(tmp_path, [["lo:40001"]], nodes=1)
    Follow(tmp_path, one, {}, observer).beat(Beat(0, "setup", 0, 0, None))
    two = one.model_copy(update={"nodes": 2, "name": "0007-w2"})
    Follow(tmp_path, two, {}, observer).beat(Beat(0, "setup", 0, 0, None))
    assert observer.lines == []
    (tmp_path / "rounds" / one.name / LISTENS).write_text("{")
    assert read_listens(tmp_path / "rounds" / one.name) is None
