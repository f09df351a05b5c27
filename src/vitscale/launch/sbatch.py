"""The file that `sbatch` is given for a round: what the job asks for, what its ranks are told, and `srun`.

Rounds that ask for the same can be given as one array: its file asks, and its elements run the files of the rounds.

Nothing in it is the user's own shell text: values of `#SBATCH` lines are of a small set of characters, words and
variables are quoted. The home folder is written as `$HOME`, since results are shared.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitscale.config.runspec import slug
from vitscale.config.study import LaunchSection
from vitscale.errors import UsageError
from vitscale.launch.local import LOOPBACK, of_the_round, worker
from vitscale.records.round import DETACHED, Round

SCRIPT, ARRAY, LOG, STATUS = "job.sh", "array.sh", "stdout.log", "status"
_VALUE = re.compile(r"[A-Za-z0-9_.,:@&|+=/-]+")


def script(results: Path, round_: Round, limits: LaunchSection, variables: Mapping[str, str]) -> str:
    """The file for a round; `variables` are those of every rank."""
    folder = results / "rounds" / round_.name
    environ = {**variables, DETACHED: "1", **of_the_round(folder, round_, LOOPBACK if round_.nodes == 1 else None)}
    words = [*srun(round_), "--input=none", *worker(round_)]
    asked = {"job-name": _named(results, round_.name), **resources(round_, limits)}
    return rendered(asked, environ, words, f"rounds/{round_.name}")


def array(results: Path, rounds: Sequence[Round], limits: LaunchSection) -> str:
    """The file for rounds that ask for the same resources; an element of the array begins when the one before ended."""
    first = rounds[0]
    asked = {"job-name": _named(results, f"w{first.world_size}"), **resources(first, limits)}
    scripts = [f"    {shlex.quote(f'rounds/{round_.name}/{SCRIPT}')}" for round_ in rounds]
    lines = [
        "#!/bin/bash",
        *_options(asked),
        f"#SBATCH --array=0-{len(rounds) - 1}%1",
        "",
        "scripts=(",
        *scripts,
        ")",
        'exec /bin/bash "${scripts[SLURM_ARRAY_TASK_ID]}"',
        "",
    ]
    return "\n".join(lines)


def _named(results: Path, name: str) -> str:
    return f"{slug(results.resolve().name, 40)}-{name}"


def srun(round_: Round) -> list[str]:
    """How the ranks are started within a job: host by host, bound to no core since they bind themselves."""
    return [
        "srun",
        f"--job-name={round_.name}",
        f"--nodes={round_.nodes}",
        f"--ntasks={round_.world_size}",
        f"--ntasks-per-node={round_.ranks_per_node}",
        *([f"--cpus-per-task={threads}"] if (threads := _threads(round_)) else []),
        "--distribution=block",
        "--cpu-bind=none",
        "--kill-on-bad-exit=1",
        "--mpi=none",
        "--export=ALL",
    ]


def resources(round_: Round, limits: LaunchSection) -> dict[str, str | None]:
    """Options of a round's job, but for its name; None is a word without a value.

    Logs are the script's: SLURM expands `%` in paths.
    """
    asked: dict[str, str | None] = {
        "nodes": str(round_.nodes),
        "ntasks-per-node": str(round_.ranks_per_node),
    }
    asked |= {"cpus-per-task": str(threads)} if (threads := _threads(round_)) else {}
    asked |= {"gpus-per-node": str(round_.ranks_per_node)} if round_.device == "cuda" else {}
    given = {
        "partition": limits.partition,
        "account": limits.account,
        "qos": limits.qos,
        "constraint": limits.constraint,
        "time": limits.time_limit,
    }
    asked |= {name: value for name, value in given.items() if value is not None}
    asked |= {"exclusive": None, "mem": "0"} if limits.exclusive else {}
    trains = any(entry.checkpoints for entry in round_.entries)
    asked |= {"signal": f"TERM@{math.ceil(limits.grace_s)}"} if trains else {}
    # A launch that begins anew in the same folder is no measurement; training goes on in a job of its own.
    asked["no-requeue"] = None
    return asked | {"output": "/dev/null"}


def _threads(round_: Round) -> int | None:
    threads: int | None = round_.entries[0].spec.get("threads_per_rank")
    return threads


def rendered(
    asked: Mapping[str, str | None],
    environ: Mapping[str, str],
    words: Sequence[str],
    folder: str,
    home: Path | None = None,
) -> str:
    """The text of the file.

    Args:
        asked: options of `sbatch`.
        environ: variables of the ranks.
        words: command that starts them.
        folder: where its logs and its exit status are left, relative to the folder that the job works in.
        home: home folder, of this user if None.

    Raises:
        UsageError: a value that SLURM or a shell could take for more than a value.
    """
    home = Path.home() if home is None else home
    exports = [f"export {_plain('a variable', name)}={quoted(value, home)}" for name, value in environ.items()]
    command = " \\\n    ".join(quoted(word, home) for word in words)
    # A node that does not see the folder starts nothing.
    logs = f"exec >>{quoted(f'{folder}/{LOG}', home)} 2>>{quoted(f'{folder}/stderr.log', home)} || exit"
    status = f"echo $? >{quoted(f'{folder}/{STATUS}', home)}"
    lines = ["#!/bin/bash", *_options(asked), "", "umask 077", logs, *exports, "", command, status, ""]
    return "\n".join(lines)


def _options(asked: Mapping[str, str | None]) -> list[str]:
    return [f"#SBATCH --{name}" + ("" if value is None else f"={_plain(name, value)}") for name, value in asked.items()]


def _plain(name: str, value: str) -> str:
    if not _VALUE.fullmatch(value):
        raise UsageError(f"`{name}` = {value[:80]!r} cannot be given to SLURM", "letters, digits and `_.,:-`")
    return value


def quoted(word: str, home: Path) -> str:
    """A word for bash, in one line; a home folder in it is `$HOME`.

    Raises:
        UsageError: it has a line feed or a NUL.
    """
    if "\n" in word or "\0" in word:
        raise UsageError(f"{word[:80]!r} cannot be given to a job: it is not one line", "another path or value")
    parts = word.split(str(home)) if len(str(home)) > 1 else [word]
    return '"$HOME"'.join(shlex.quote(part) if part else "" for part in parts) or "''"
