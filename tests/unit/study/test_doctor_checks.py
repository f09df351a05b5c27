"""What `vitscale doctor` makes of facts: each thing that is wrong is one failed check, with what to type."""

import pytest

from vitscale.config.load import load
from vitscale.data.catalog import DatasetFacts
from vitscale.hardware.probe import Gpu, Machine
from vitscale.launch.hostfile import Host
from vitscale.launch.outcome import RoundEnd
from vitscale.records.examination import Examination, HostFacts, Interface, Limits, Meeting, PairTiming
from vitscale.records.links import LinkBenchmark, Timing
from vitscale.study.checks import Case, of_hosts
from vitscale.study.doctor import largest_world, world_of
from vitscale.study.grid import Images, build
from vitscale.study.link_checks import of_ranks
from vitscale.study.where import Where

DIGITS = Images(DatasetFacts("digits", 10, 1437, 360, 8, 8, 1, "made for this test"), "0123456789abcdef")
A100 = "NVIDIA A100-SXM4-80GB"
NO_LIMITS = Limits(
    open_files=65536, processes=None, processor_s=None, address_space_bytes=None, file_bytes=None, locked_bytes=None,
    left_s=None,
)  # fmt: skip


def machine(gpus=0, cores=4):
    return Machine(cores, tuple(range(cores)), 16 << 30, "a CPU", (Gpu(A100, 80 << 30),) * gpus, None, None)


def runs(*words, gpus=0, lab=True):
    words = ("protocol=strong", "global_batch=96", *words)
    where = Where(machine(gpus), lab=lab, elsewhere=not lab)
    return build(load("quick", words).study, where, lambda section: DIGITS).runs


def host(node, **changes):
    facts = {
        "node": node, "name": f"n{node}", "versions": {"torch": "2.14.1"}, "devices": ("a CPU",),
        "devices_reason": None, "cores": 4, "memory_bytes": 16 << 30,
        "interface": Interface(name="eth0", why="GLOO_SOCKET_IFNAME=eth0", loopback=False), "limits": NO_LIMITS,
        "results_free_bytes": 50 << 30, "shm_free_bytes": 8 << 30, "missing_tools": (), "cache_writable": True,
    }  # fmt: skip
    return HostFacts(**facts | changes)


def meeting(node, **changes):
    facts = {
        "node": node, "clock_offset_s": 0.0, "clock_error_s": 0.0, "write_s": 0.001, "seen_s": 0.01, "unseen": (),
        "listens": ("eth0:40000",),
    }  # fmt: skip
    return Meeting(**facts | changes)


def pair(a, b, bytes_per_s):
    seconds = 20e6 / bytes_per_s
    return PairTiming(a=a, b=b, bytes=20_000_000, there_s=(seconds,), back_s=(seconds,), bytes_per_s=bytes_per_s)


LINKS = LinkBenchmark(world_size=3, nodes=3, backend="gloo", link=None, latency_s=1e-4, timings=(), left_out=0)


def timing(bus_bytes_per_s, size=20_000_000, operation="all_reduce"):
    rate = bus_bytes_per_s / 2 if operation == "all_reduce" else bus_bytes_per_s
    return Timing(
        operation=operation, bytes=size, times_s=(size / rate,), algorithm_bytes_per_s=rate,
        bus_bytes_per_s=bus_bytes_per_s,
    )  # fmt: skip


def together(hosts, pairs=(), between="hosts", inside=(), timings=()):
    links = LINKS.model_copy(update={"timings": tuple(timings)})
    return Examination(
        backend="gloo", hosts=tuple(hosts), between=between, pairs=tuple(pairs), inside=tuple(inside), links=links
    )


def case(hosts, found=None, *words, end=None, **where):
    words = words or (f"world_size={len(hosts)}", f"nodes={len(hosts)}")
    return Case(largest_world(runs(*words, **where)), tuple(hosts), found, end or RoundEnd("ok"))


def wrong(checks):
    """Name, status, place and text of what is not ok; each of them says what to type."""
    found = [one for one in checks if one.status != "ok"]
    assert all(one.hint for one in found)
    return [(one.name, one.status, one.where, one.text) for one in found]


def test_hosts_that_are_well_pass_every_check():
    well = case([host(0), host(1), host(2)], together([meeting(0), meeting(1), meeting(2)], [pair(0, 1, 1e9)]))
    assert wrong(of_hosts(well)) == wrong(of_ranks(well)) == []
    assert {one.name for one in [*of_hosts(well), *of_ranks(well)]} == {
        "hosts", "versions", "devices", "disk", "/dev/shm", "limits", "tools", "interface", "ranks talk", "listening",
        "clocks", "results folder", "links",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"versions": {"torch": "2.13.0"}},
            ("versions", "failed", "all hosts", "torch 2.14.1 on host 0, 2.13.0 on host 1"),
        ),
        (
            {"versions": {"torch": "2.14.1", "kernel": "6.1"}},
            ("kernel", "warning", "all hosts", "none on host 0, 6.1 on host 1"),
        ),
        (
            {"devices": ("another CPU",)},
            ("devices", "warning", "all hosts", "host 0: 1 x a CPU; host 1: 1 x another CPU"),
        ),
        ({"results_free_bytes": 50 << 20}, ("disk", "failed", "host 1 (n1)", "50.0 MiB free for results")),
        (
            {"limits": NO_LIMITS.model_copy(update={"open_files": 64})},
            ("limits", "failed", "host 1 (n1)", "ulimit -n (open files) is 64, 264 are needed"),
        ),
        (
            {"limits": NO_LIMITS.model_copy(update={"processor_s": 3600})},
            ("limits", "warning", "host 1 (n1)", "ulimit -t (processor time, s) is 3,600"),
        ),
        (
            {"limits": NO_LIMITS.model_copy(update={"left_s": 120.0})},
            ("time", "warning", "all hosts", "2 min 00 s left of the scheduler's job"),
        ),
    ],
)
def test_what_is_wrong_with_one_host_is_one_line(changes, found):
    assert wrong(of_hosts(case([host(0), host(1, **changes)]))) == [found]


def test_unlike_devices_are_well_where_every_run_deals_its_images_by_split():
    hosts, words = [host(0), host(1, devices=("another CPU",))], ("world_size=2", "nodes=2", "engine=ddp")
    (warning,) = [one for one in of_hosts(case(hosts, None, *words)) if one.status == "warning"]
    assert "engine.split=proportional" in warning.hint
    dealt = case(hosts, None, *words, "engine.split=proportional")
    assert wrong(of_hosts(dealt)) == []
    (told,) = [one.text for one in of_hosts(dealt) if one.name == "devices"]
    assert told == "host 0: 1 x a CPU; host 1: 1 x another CPU; shares of images by engine.split"
    mixed = dealt._replace(runs=[*dealt.runs, *case(hosts, None, *words).runs])
    assert [one[:2] for one in wrong(of_hosts(mixed))] == [("devices", "warning")]


def test_a_host_without_a_word_is_named():
    found = case([host(0)], None, "world_size=2", "nodes=2", end=RoundEnd("timeout", "rank 1 left no word"))
    (check,) = wrong(of_hosts(found))
    assert check[:3] == ("hosts", "failed", "host 1")
    assert wrong(of_ranks(found)) == [("ranks talk", "failed", "all hosts", "rank 1 left no word")]


def test_hidden_gpus_and_a_small_shm_are_failures():
    gpus = (A100,) * 2
    hosts = [host(0, devices=gpus), host(1, devices=gpus[:1], shm_free_bytes=64 << 20)]
    found = wrong(of_hosts(case(hosts, None, "world_size=4", "nodes=2", "device=cuda", gpus=2, lab=False)))
    assert ("devices", "failed", "host 1 (n1)", "sees 1 of the 2 GPUs that its ranks need") in found
    small = [host(0, devices=gpus), host(1, devices=gpus, shm_free_bytes=32 << 20)]
    found = wrong(of_hosts(case(small, None, "world_size=4", "nodes=2", "device=cuda", gpus=2, lab=False)))
    assert found == [("/dev/shm", "failed", "host 1 (n1)", "32.0 MiB free, NCCL takes up to 63.0 MiB")]


def test_a_compiler_is_needed_by_what_compiles_only():
    bare = [host(0, missing_tools=("g++", "ninja", "nvcc"))]
    assert wrong(of_hosts(case(bare))) == []
    (found,) = wrong(of_hosts(case(bare, None, "world_size=1", "compile=true")))
    assert found[:2] == ("tools", "failed")
    assert "g++" in found[3]
    assert "ninja" not in found[3]


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"clock_offset_s": -3600.0},
            ("clocks", "failed", "host 1", "1 h 00 min ahead of host 0, more than SLURM and Kerberos take"),
        ),
        ({"clock_offset_s": 2.5}, ("clocks", "warning", "host 1", "2.50 s behind host 0")),
        (
            {"seen_s": None, "unseen": (0, 2)},
            ("results folder", "failed", "host 1", "does not see what hosts 0, 2 wrote to the results folder"),
        ),
        ({"listens": ("all:40000",)}, ("listening", "warning", "all hosts", "all:40000 on host 1")),
    ],
)
def test_what_is_wrong_between_hosts_is_one_line(changes, found):
    hosts = [meeting(0), meeting(1, **changes), meeting(2)]
    assert wrong(of_ranks(case([host(0), host(1), host(2)], together(hosts)))) == [found]


def test_a_slow_results_folder_is_told():
    hosts = [meeting(0, seen_s=4.0), meeting(1, write_s=0.9), meeting(2)]
    (found,) = wrong(of_ranks(case([host(0), host(1), host(2)], together(hosts))))
    assert found[:2] == ("results folder", "warning")


def test_the_largest_world_is_looked_at():
    found = largest_world(runs("world_size=1,2,4", "zero_stage=0,1"))
    assert [(run.world_size, run.zero_stage) for run in found] == [(4, 0), (4, 1)]


@pytest.mark.parametrize(
    ("launcher", "gpus", "cores", "words"),
    [
        ("local", 0, 8, ["world_size=2"]),
        ("local", 0, 1, ["world_size=1"]),
        ("local", 4, 8, ["world_size=4"]),
        ("lab", 0, 8, ["world_size=2", "nodes=2"]),
    ],
)
def test_without_a_study_the_world_is_this_machines(launcher, gpus, cores, words):
    assert world_of(launcher, Where(machine(gpus, cores)), None) == words


@pytest.mark.parametrize("launcher", ["hosts", "mpi", "slurm"])
@pytest.mark.parametrize("count", [2, 3, 100])
def test_without_a_study_every_host_has_a_rank(launcher, count):
    where = Where(machine(gpus=2), hosts=tuple(Host(f"n{node}", 2) for node in range(count)))
    study = load("quick", world_of(launcher, where, None)).study
    (found,) = largest_world(build(study, where, lambda section: DIGITS).runs)
    assert (found.world_size, found.nodes) == (count, count)


def test_of_a_single_host_all_devices_have_a_rank():
    assert world_of("slurm", Where(machine(gpus=4), hosts=(Host("batch", 4),)), None) == ["world_size=4"]
