"""`jobs.jsonl`: what SLURM was given for the rounds of a results folder. A job is written down before it is waited for.

A line `{"round", "job", "submitted"}` for a job, and one `{"round", "job", "ended"}` with the round's status when its
end was seen. A job without the second may be at work. An element of an array is a job too, `17_2`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from vitscale.errors import ResultsError
from vitscale.launch import processes
from vitscale.launch.outcome import Launcher, Queue
from vitscale.records.writer import append_lines, write_whole

JOBS = "jobs.jsonl"


def note_submitted(results: Path, given: Mapping[str, str]) -> None:
    """Write down jobs by their rounds' names; they are on the disk when this returns."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _append(results, *({"round": name, "job": job, "submitted": now} for name, job in given.items()))


def note_ended(results: Path, round_name: str, job: str, status: str) -> None:
    """Write down that a job's end was seen."""
    _append(results, {"round": round_name, "job": job, "ended": status})


def unfinished(results: Path) -> dict[str, str]:
    """Round's name -> job of those whose end nobody has seen, in the order of submission."""
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(results / JOBS), 1):
        try:
            document = json.loads(line)
            round_name, job, ended = str(document["round"]), str(document["job"]), "ended" in document
        except (ValueError, KeyError, TypeError):
            raise ResultsError(
                f"line {number} of `{JOBS}` is damaged", "remove the line; `squeue --me` shows what still runs"
            ) from None
        if ended:
            found.pop(round_name, None)
        else:
            found[round_name] = job
    return found


def numbers(jobs: Iterable[str]) -> list[str]:
    """What `scancel` ends jobs by: of elements of an array its number."""
    return [*dict.fromkeys(job.partition("_")[0] for job in jobs)]


def require_none(results: Path) -> None:
    """Refuse to work in a folder in which jobs may be at work.

    Raises:
        ResultsError: there are some.
    """
    if jobs := numbers(unfinished(results).values()):
        named = ", ".join(jobs)
        raise ResultsError(
            f"SLURM was given rounds of `{results}` whose end was not seen: job {named}",
            f"`--launcher slurm`, outside of a job, picks them up; `scancel {' '.join(jobs)}` before it ends them",
        )


def end_leftovers(results: Path, launcher: Launcher) -> None:
    """End what a killed tool left at work in a folder. Jobs go on: only who waits for them works beside them.

    Of jobs only examinations are ended.

    Raises:
        ResultsError: there are some, and this is another launcher.
    """
    if isinstance(launcher, Queue):
        launcher.left(results)
    else:
        require_none(results)
        processes.end_leftovers(results)


def _append(results: Path, *documents: dict[str, str]) -> None:
    path = results / JOBS
    try:
        whole = path.read_bytes() if path.exists() else b""
        if not whole.endswith(b"\n"):  # new, or an earlier process was ended while it wrote
            write_whole(path, whole[: whole.rfind(b"\n") + 1])
        append_lines(path, documents)
    except OSError as error:
        raise ResultsError(f"cannot write `{JOBS}`: {error.strerror}", "free some disk space") from None


def _lines(path: Path) -> list[str]:
    """Whole lines; one that was not written to its end names no job that was waited for."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    return [line for line in text.split("\n")[:-1] if line.strip()]
