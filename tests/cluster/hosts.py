"""Studies on two hosts that are laid out on this machine."""

import json
import os
import subprocess

from ranks import start

from vitscale.study.plan import PAYLOAD_SHARE

RATES_BYTES_PER_S = {"100mbit": PAYLOAD_SHARE * 12.5e6, "1gbit": PAYLOAD_SHARE * 125e6}

HOSTS = ("world_size=2", "nodes=2", "model.name=vit_tiny_patch16_224", "depth=4", "embed_dim=48", "global_batch=8")


def lab(store, out, *words, **more):
    """`vitscale run quick --launcher lab`, small, in a process of its own."""
    words = {word.partition("=")[0]: word for word in (*HOSTS, *words)}.values()
    return start(store, out, *words, flags=("--launcher", "lab"), preexec_fn=_ahead, **more)


def _ahead():
    """Before whatever else this machine does: what is tested is the link, and its kernel work takes processor time."""
    os.nice(-15)


def timed_link(results, manifest):
    """A round's `links.json`, and operation -> bytes per second of its fastest call with the most bytes.

    Two ranks: the bus factor is 1. A busy machine adds time to a call, and none is faster than the link.
    """
    found = json.loads((results / "rounds" / manifest["round"] / "links.json").read_text())
    return found, {one["operation"]: one["bytes"] / min(one["times_s"]) for one in found["timings"]}


def cut_off(process_id, host):
    """Take down the link of a host that a process has laid out."""
    switch = f"vitscale-{process_id}-switch"
    subprocess.run(["ip", "-n", switch, "link", "set", f"port{host}", "down"], check=True)


def unshared(results):
    """Words before a command whose results folder is its own: other hosts see an empty one there."""
    results.mkdir()
    return ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(results))
