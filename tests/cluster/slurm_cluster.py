"""A real SLURM of two nodes on one host: its daemons, with folders and ports of their own, and their end."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from vitscale.errors import SetupError
from vitscale.launch.scheduler import require_slurm

CONF = """
ClusterName=vitscale
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
ReturnToService=2
KillWait=5
OverTimeLimit=0
EnforcePartLimits=ALL
SlurmdTimeout=20
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=1 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=1 RealMemory=4000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 OverSubscribe=NO
PartitionName=urgent Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=9 PreemptMode=OFF
"""
_DAEMONS = ("munged", "mungekey", "slurmctld", "slurmd")


class Cluster:
    """A cluster that is up."""

    def __init__(self, folder):
        self.folder = folder
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = {}

    def start(self, name, *words):
        """Start a daemon in the foreground; what it says is in its log."""
        with (self.folder / f"{name}.out").open("ab") as out:
            started = subprocess.Popen(
                words, env={**os.environ, **self.environ}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self.daemons[name] = started

    def command(self, *words, **more):
        """Run one of SLURM's commands; its standard output."""
        environ = {**os.environ, **self.environ}
        return subprocess.run(
            words, env=environ, capture_output=True, text=True, check=False, timeout=30, **more
        ).stdout

    def idle(self):
        """Number of nodes that wait for work."""
        return self.command("sinfo", "--noheader", "--partition=main", "--Node", "--format=%t").split().count("idle")

    def jobs(self):
        """Numbers of the jobs in the queue."""
        return self.command("squeue", "--noheader", "--format=%i").split()


@contextlib.contextmanager
def cluster():
    """Two nodes of one core each.

    Raises:
        SetupError: not root, or no SLURM.
    """
    require_slurm()
    if os.geteuid() != 0:
        raise SetupError("the daemons of SLURM start jobs as their user, which only root may", "start it by sudo")
    if missing := [name for name in _DAEMONS if shutil.which(name) is None]:
        raise SetupError(f"{', '.join(missing)}: not found", "apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # paths of sockets are short
    folder.chmod(0o755)
    up = Cluster(folder)
    try:
        _start(up)
        yield up
    finally:
        up.command("scancel", "--signal=KILL", *up.jobs())
        for daemon in reversed(up.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(up):
    folder, host = up.folder, socket.gethostname().split(".")[0]
    controller, first, second = _free_ports(3)
    (folder / "state").mkdir()
    text = CONF.format(folder=folder, host=host, controller=controller, first=first, second=second)
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True, timeout=30)
    paths = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
    up.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *paths)
    _wait(lambda: (folder / "munge.socket").exists(), up, "munged")
    up.start("slurmctld", "slurmctld", "-D")
    for name in ("n1", "n2"):
        up.start(f"slurmd.{name}", "slurmd", "-D", "-N", name)
    _wait(lambda: up.idle() == 2, up, "two idle nodes")


def _wait(condition, up, what):
    deadline = time.monotonic() + 40
    while not condition():
        told = "".join(path.read_text(errors="replace")[-600:] for path in up.folder.glob("*.out"))
        assert time.monotonic() < deadline, f"{what}: {told}"
        time.sleep(0.2)


def _free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
