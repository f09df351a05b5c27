"""The results folder of a study: whose it is, who may write into it, and the documents at its top."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from vitscale.config.runspec import slug
from vitscale.errors import ResultsError
from vitscale.records.launches import read_document, read_launches
from vitscale.records.writer import make_folder, require_no_links, write_json, write_whole
from vitscale.study.plan import Plan

STUDY, RESOLVED, PLAN = "study.toml", "resolved.json", "plan.json"
_DOCUMENT_VERSION = 1


def default_folder(study_name: str) -> Path:
    """`results/<study name>` below the working folder; each part of the name as a safe file name."""
    return Path("results", *(slug(part) for part in study_name.split("/")))


def is_results(folder: Path) -> bool:
    """Whether a study has been at work in the folder."""
    return any((folder / name).exists() for name in (RESOLVED, "runs", ".lock"))


def studies_in(folder: Path) -> list[Path]:
    """The results folders in a folder that is none itself, by name; not what only `vitscale doctor` looked at."""
    if is_results(folder) or not folder.is_dir():
        return []
    return sorted(
        one for one in folder.iterdir() if one.is_dir() and any((one / name).exists() for name in (RESOLVED, "runs"))
    )


def check(folder: Path) -> None:
    """Refuse what is no place for results, before anything is prepared.

    Raises:
        ResultsError: a file, a folder that holds something else, or one with links to elsewhere.
    """
    if folder.exists() and not folder.is_dir():
        raise ResultsError(f"`{folder}` is a file, not a results folder", "`--out` names another folder")
    if folder.is_dir() and not is_results(folder) and any(folder.iterdir()):
        raise ResultsError(
            f"`{folder}` is not empty and not a results folder", "give `--out` a folder that is new or empty"
        )
    require_no_links(folder)


@contextlib.contextmanager
def opened(folder: Path, plan: Plan) -> Iterator[None]:
    """Hold a results folder (`check`ed) for one study: other processes are kept out, its documents are written.

    Raises:
        ResultsError: it belongs to another study, holds another source's records or something else altogether, is in
            use by another process, or cannot be written.
    """
    with locked(folder):
        _check_owner(folder, plan)
        resolved = plan.loaded.study.model_dump(mode="json")
        write_whole(folder / STUDY, _without_home(plan.loaded.text).encode())
        write_json(folder / RESOLVED, json.loads(_without_home(json.dumps(resolved))))
        write_json(folder / PLAN, plan.document())
        yield


def _without_home(text: str) -> str:
    """Results are shared; whose home folder a path went through is not part of them, and `~` reads the same."""
    home = str(Path.home())
    return text.replace(f"{home}/", "~/") if len(home) > 1 else text


def _check_owner(folder: Path, plan: Plan) -> None:
    study = plan.loaded.study
    document = read_document(folder, folder / RESOLVED, _DOCUMENT_VERSION)
    owner = study.name if document is None else document.get("name")
    if owner != study.name:
        raise ResultsError(
            f"`{folder}` holds the results of study `{owner}`, not of `{study.name}`", "`--out` names another folder"
        )
    source = "simulated" if any(run.simulated_device for run in plan.grid.runs) else "measured"
    held = {launch.manifest.source for launch in read_launches(folder) if launch.manifest is not None}
    if held - {source}:
        raise ResultsError(
            f"`{folder}` holds {' and '.join(sorted(held))} records, and this run is {source}: never in one folder",
            "`--out` names another folder",
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a results folder and keep other processes out of it. The lock dies with its holder.

    Raises:
        ResultsError: it is in use by another process, or cannot be written.
    """
    make_folder(folder)
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ResultsError(f"cannot write `{folder}`: {error.strerror}", "`--out` names another folder") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResultsError(
                f"another vitscale is working in `{folder}`", "wait for it, or give this one its own `--out`"
            ) from None
        yield
    finally:
        os.close(descriptor)
