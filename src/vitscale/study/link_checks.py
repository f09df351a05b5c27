"""What `vitscale doctor` makes of the ranks together: that they talk, clocks, the shared folder, and slow links."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from vitscale.hardware.interfaces import astray
from vitscale.records.examination import Check, CheckStatus, Examination, Meeting, PairTiming, hosts_named
from vitscale.study.checks import ALL, Case
from vitscale.study.expected import SLOW_SHARE, Expected, all_reduce, between_hosts, inside_host
from vitscale.units import decimal, percent, seconds, size

_CLOCK_S, _CLOCK_REFUSED_S = 1.0, 300.0
"""An offset that confuses the times of files; and what Kerberos and munge, so SLURM, refuse."""
_WRITE_S, _SEEN_S = 0.5, 2.0


def of_ranks(case: Case) -> Iterator[Check]:
    """Every check of the ranks together."""
    yield from _interfaces(case)
    if case.together is None:
        reason = case.end.reason or "the ranks ended before they talked"
        hint = case.end.hint or "the checks above; else rounds/*/stderr.log in the results folder"
        yield Check(name="ranks talk", status="failed", where=ALL, text=reason, hint=hint)
        return
    yield from _talk(case.together)
    yield from _listening(case, case.together)
    yield from _clocks(case.together.hosts)
    yield from _folder(case.together.hosts)
    yield from _links(case, case.together)
    yield from _all_reduce(case, case.together)


def _interfaces(case: Case) -> Iterator[Check]:
    lost = [case.hosts[number] for number in astray([host.interface for host in case.hosts])]
    for host in lost:
        variable = "NCCL_SOCKET_IFNAME" if case.run.torch_backend == "nccl" else "GLOO_SOCKET_IFNAME"
        text = f"reached by `{host.interface.name}`, which ends on itself: {host.interface.why}"
        hint = f"{variable}=<interface>; `ip -brief address` on that host lists them"
        yield Check(name="interface", status="failed", where=case.where(host), text=text, hint=hint)
    if not lost:
        ways = {(host.interface.name, host.interface.why): host for host in case.hosts}
        text = "; ".join(f"`{name}`: {why}" for name, why in list(ways)[:8])
        yield Check(name="interface", status="ok", where=ALL, text=text or "not told")


def _talk(together: Examination) -> Iterator[Check]:
    if together.links is None:
        yield Check(name="ranks talk", status="ok", where=ALL, text="one rank, which talks to nobody")
        return
    text = f"an all-reduce of one element takes {seconds(together.links.latency_s)} ({together.backend})"
    yield Check(name="ranks talk", status="ok", where=ALL, text=text)


def _listening(case: Case, together: Examination) -> Iterator[Check]:
    found = [(host.node, one) for host in together.hosts for one in host.listens]
    alone = case.run.nodes == 1
    open_ = [one for one in found if one[1].startswith("all:") or (alone and not one[1].startswith("lo:"))]
    if open_:
        text = "; ".join(f"{one} on host {node}" for node, one in open_[:8])
        hint = "a firewall, or a network that is only the cluster's: ranks trust whoever connects"
        yield Check(name="listening", status="warning", where=ALL, text=text, hint=hint)
        return
    told = ", ".join(sorted({one.partition(":")[0] for _, one in found})) or "nowhere"
    yield Check(name="listening", status="ok", where=ALL, text=f"{len(found)} ports, on {told}")


def _clocks(hosts: Sequence[Meeting]) -> Iterator[Check]:
    off = [host for host in hosts if abs(host.clock_offset_s) > _CLOCK_S]
    for host in off:
        refused = abs(host.clock_offset_s) > _CLOCK_REFUSED_S
        side = "behind" if host.clock_offset_s > 0 else "ahead of"
        text = f"{seconds(abs(host.clock_offset_s))} {side} host 0"
        text += ", more than SLURM and Kerberos take" if refused else ""
        hint = "timedatectl set-ntp true, or chronyc makestep, on that host"
        status: CheckStatus = "failed" if refused else "warning"
        yield Check(name="clocks", status=status, where=f"host {host.node}", text=text, hint=hint)
    if not off:
        worst = max(hosts, key=lambda host: abs(host.clock_offset_s))
        text = f"at most {seconds(abs(worst.clock_offset_s))} apart" if len(hosts) > 1 else "one host, one clock"
        yield Check(name="clocks", status="ok", where=ALL, text=text)


def _folder(hosts: Sequence[Meeting]) -> Iterator[Check]:
    blind = [host for host in hosts if host.unseen]
    for host in blind:
        text = f"does not see what {hosts_named(host.unseen)} wrote to the results folder"
        hint = "`--out` on a file system that all hosts mount at one path; NFS: mount with actimeo=3 or less"
        yield Check(name="results folder", status="failed", where=f"host {host.node}", text=text, hint=hint)
    if blind:
        return
    write = max(hosts, key=lambda host: host.write_s)
    lag = max(hosts, key=lambda host: host.seen_s or 0.0)
    slow = write.write_s > _WRITE_S or (lag.seen_s or 0.0) > _SEEN_S
    text = f"seen by all after {seconds(lag.seen_s)} at most, a line is on the disk after {seconds(write.write_s)}"
    faster = "a faster `--out`: records are flushed at the end of each launch" if slow else None
    yield Check(name="results folder", status="warning" if slow else "ok", where=ALL, text=text, hint=faster)


def _gpu(case: Case) -> str | None:
    names = (name for host in case.hosts for name in host.devices)
    return next(names, None) if case.run.device == "cuda" else None


def _links(case: Case, together: Examination) -> Iterator[Check]:
    gpu = _gpu(case)
    inside = inside_host(gpu)
    expected = between_hosts(case.run, gpu) if together.between == "hosts" else inside
    for name, pairs, members, rate in (
        ("links", together.pairs, together.between, expected),
        ("links inside", together.inside, "ranks", inside),
    ):
        if pairs and members == "ranks" and gpu is None:  # through the host's memory, for less than a millisecond
            yield Check(name=name, status="ok", where="all ranks", text=f"{_rate_text(pairs)}; {_UNKNOWN}")
        elif pairs:
            alike = members == "hosts" or inside is not None
            yield from _pairs(name, pairs, members.removesuffix("s"), rate, alike=alike)


_HINTS = {
    "host": "ethtool <interface> (speed, errors), its cable and switch port; iperf3 between the two; or leave it out",
    "rank": "nvidia-smi topo -m and nvidia-smi nvlink --status on that host; or leave it out",
}


def _pairs(
    name: str, pairs: Sequence[PairTiming], kind: str, expected: Expected | None, *, alike: bool
) -> Iterator[Check]:
    """Held against the best of them where no rate is sure. Pairs that are joined unlike tell of a member only."""
    best = max(pairs, key=lambda one: one.bytes_per_s)
    reference, whose = best.bytes_per_s, f"the best pair, {kind}s {best.a} and {best.b}"
    if expected and expected.judges:
        reference, whose = expected.bytes_per_s, expected.whose
    slow = [one for one in pairs if one.bytes_per_s < SLOW_SHARE * reference]
    culprits, hint = slow_members(pairs, slow), _HINTS[kind]
    alone = [one for one in slow if alike and not {one.a, one.b} & {*culprits}]
    if not culprits and not alone:
        yield Check(name=name, status="ok", where=f"all {kind}s", text=f"{_rate_text(pairs)}; {_told(expected)}")
    for member in culprits:
        own = [one for one in slow if member in (one.a, one.b)]
        text = f"{_rate_text(own)} with every other, {percent(_share(own, reference), 0)} of {whose}"
        yield Check(name=name, status="failed", where=f"{kind} {member}", text=text, hint=hint)
    for one in alone:
        text = f"{_rate_text([one])}, {percent(_share([one], reference), 0)} of {whose}"
        yield Check(name=name, status="failed", where=f"{kind}s {one.a} and {one.b}", text=text, hint=hint)


_UNKNOWN = "no known rate to hold it against"


def _told(expected: Expected | None) -> str:
    return expected.text if expected else _UNKNOWN


def _all_reduce(case: Case, together: Examination) -> Iterator[Check]:
    found = all_reduce(case.run, _gpu(case), together.links) if together.links else None
    if found is None:
        return
    text = f"{decimal(found.timing.bus_bytes_per_s, 'B/s')} bus bandwidth with {size(found.timing.bytes)}; "
    text += _told(found.expected)
    hint = "a slow link above; where there is none, NCCL_DEBUG=INFO tells which network and rings NCCL has chosen"
    status: CheckStatus = "warning" if found.slow else "ok"
    yield Check(name="all-reduce", status=status, where="all ranks", text=text, hint=hint if found.slow else None)


def slow_members(pairs: Sequence[PairTiming], slow: Sequence[PairTiming]) -> list[int]:
    """Members all of whose pairs are slow, several, where pairs of others are not: there the fault is."""
    sound = [one for one in pairs if one not in slow]
    well = {member for one in sound for member in (one.a, one.b)}
    counted = Counter(member for one in slow for member in (one.a, one.b))
    return sorted(member for member, count in counted.items() if sound and count > 1 and member not in well)


def _share(pairs: Sequence[PairTiming], reference: float) -> float:
    return statistics.median(one.bytes_per_s for one in pairs) / reference


def _rate_text(pairs: Sequence[PairTiming]) -> str:
    rate = statistics.median(one.bytes_per_s for one in pairs)
    return f"{decimal(rate, 'B/s')} with {size(max(one.bytes for one in pairs))}"
