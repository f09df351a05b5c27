"""`jobs.jsonl`: what SLURM was given for the rounds of a results folder. A job is written down before it is waited for.

A line `{"round", "submitting"}` with the word that the job will be known by, before SLURM is asked to take it; then
`{"round", "job", "submitted"}`, and `{"round", "job", "ended"}` with the round's status when its end was seen. A job
without the last may be at work; without the second, SLURM knows whether there is one. An element of an array is a job
too, `17_2`.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from vitscale.errors import ResultsError
from vitscale.launch import processes
from vitscale.launch.outcome import Launcher, Queue
from vitscale.records.writer import append_lines, write_whole

JOBS = "jobs.jsonl"
_KINDS = ("ended", "job", "submitting")


def note_submitting(results: Path, round_names: Iterable[str]) -> str:
    """Write down what SLURM is about to be given; the word that a job is known by whose number nobody heard."""
    word = f"vitscale-{secrets.token_hex(8)}"
    for name in round_names:
        _append(results, {"round": name, "submitting": word})
    return word


def note_submitted(results: Path, given: Mapping[str, str]) -> None:
    """Write down jobs by their rounds' names; they are on the disk when this returns."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _append(results, *({"round": name, "job": job, "submitted": now} for name, job in given.items()))


def note_ended(results: Path, round_name: str, job: str, status: str) -> None:
    """Write down that a job's end was seen."""
    _append(results, {"round": round_name, "job": job, "ended": status})


def note_not_taken(results: Path, round_name: str) -> None:
    """Write down that SLURM has no job for a round."""
    _append(results, {"round": round_name, "ended": "not taken"})


def unfinished(results: Path) -> dict[str, str]:
    """Round's name -> job of those whose end nobody has seen, in the order of submission."""
    return {name: job for name, (kind, job) in _open(results).items() if kind == "job"}


def unanswered(results: Path) -> dict[str, list[str]]:
    """Word -> names of the rounds that SLURM was given under it, where nobody heard its answer."""
    found: dict[str, list[str]] = {}
    for name, (kind, word) in _open(results).items():
        if kind == "submitting":
            found.setdefault(word, []).append(name)
    return found


def _open(results: Path) -> dict[str, tuple[str, str]]:
    """Round's name -> kind and value of its last line, of rounds without an end."""
    found: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(_lines(results / JOBS), 1):
        try:
            document = json.loads(line)
            name, kind = str(document["round"]), next(key for key in _KINDS if key in document)
        except (ValueError, KeyError, TypeError, StopIteration):
            raise ResultsError(
                f"line {number} of `{JOBS}` is damaged", "remove the line; `squeue --me` shows what still runs"
            ) from None
        if kind == "ended":
            found.pop(name, None)
        else:
            found[name] = kind, str(document[kind])
    return found


def numbers(jobs: Iterable[str]) -> list[str]:
    """What `scancel` ends jobs by: of elements of an array its number."""
    return [*dict.fromkeys(job.partition("_")[0] for job in jobs)]


def require_none(results: Path) -> None:
    """Refuse to work in a folder in which jobs may be at work.

    Raises:
        ResultsError: there are some.
    """
    if words := unanswered(results):
        named = ", ".join(name for names in words.values() for name in names)
        raise ResultsError(
            f"SLURM was given rounds of `{results}`, and its answer was not heard: {named}",
            "`--launcher slurm`, outside of a job, asks it which it took",
        )
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
