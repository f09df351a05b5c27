"""Two hosts laid out on this machine that a real sshd each lets in, with keys and settings of their own."""

import contextlib
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

from vitscale.errors import SetupError
from vitscale.launch.hosts import find_ssh
from vitscale.launch.lab import NAMESPACES, network

ADDRESSES = ("10.0.0.1", "10.0.0.2")
SERVER = """
Port 2222
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile {folder}/{address}.pid
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""
CLIENT = """
Port 2222
IdentityFile {folder}/client_key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile /dev/null
"""


def find_sshd():
    """Path of the server, where client and server are installed.

    Raises:
        SetupError: one of them is not there.
    """
    find_ssh()
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise SetupError("no `sshd`", "apt-get install openssh-server")
    return found


class Hosts:
    """Hosts that are up, and how a command is started on the first of them."""

    def __init__(self, folder, names):
        self.names = names
        self.prefix = ("nsenter", f"--net={NAMESPACES / names[0]}", "--")
        self.hostfile = folder / "hosts"
        self.hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
        self.environ = {"PATH": f"{folder}:{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "eth0"}

    def has(self, process_id):
        """Whether a process runs on one of them."""
        with contextlib.suppress(OSError):  # it is over
            own = Path(f"/proc/{process_id}/ns/net").stat().st_ino
            return own in {(NAMESPACES / name).stat().st_ino for name in self.names}
        return False

    def link(self, host, state):
        """Set the link of a host `up` or `down`."""
        subprocess.run(["ip", "-n", self.names[host], "link", "set", "eth0", state], check=True)


@contextlib.contextmanager
def ssh_hosts(folder):
    """Both, with what they need in a new folder.

    Raises:
        SetupError: no ssh, no sshd, or a kernel that lays out no hosts.
    """
    find_sshd()
    folder.mkdir()
    for name in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"[{address}]:2222 {key}" for address in ADDRESSES))
    (folder / "config").write_text(CLIENT.format(folder=folder))
    # ssh takes its folder from the account and not from HOME: the one found first is told where its settings are.
    (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (folder / "ssh").chmod(stat.S_IRWXU)
    # What Debian's sshd wants for its unprivileged part; it stays, since another test's server may be up.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    servers = []
    with network(2, None) as names:
        try:
            for name, address in zip(names, ADDRESSES, strict=True):
                servers.append(_serve(folder, name, address))
            yield Hosts(folder, names)
        finally:
            for server in servers:
                server.kill()
                server.wait()


def _serve(folder, name, address):
    config = folder / f"{address}.config"
    config.write_text(SERVER.format(folder=folder, address=address))
    command = ["nsenter", f"--net={NAMESPACES / name}", "--", find_sshd(), "-D", "-e", "-f", str(config)]
    said = folder / f"{address}.log"
    with said.open("wb") as log:
        server = subprocess.Popen(command, stderr=log)
    deadline = time.monotonic() + 10
    while b"listening" not in said.read_bytes():
        assert time.monotonic() < deadline, f"sshd does not listen: {said.read_text()}"
        time.sleep(0.05)
    return server
