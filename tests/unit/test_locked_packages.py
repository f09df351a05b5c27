"""`requirements/*.txt`: what `make lock` writes, every package by version and sha256."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKED = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def packages(path):
    """name -> (version, hashes)"""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        words = line.partition(";")[0].split()
        name, _, version = words[0].partition("==")
        found[canonicalize_name(name)] = version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
    return found


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
def test_every_package_of_the_locked_files_has_its_hashes(path):
    found = packages(path)
    assert len(found) > 10
    assert [name for name, (version, hashes) in found.items() if not (version and hashes)] == []


@pytest.mark.parametrize("path", LOCKED, ids=lambda path: path.name)
def test_the_versions_are_those_that_were_tested(path):
    lines = filter(None, (ROOT / "constraints.txt").read_text().splitlines())
    tested = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    found = {name: version for name, (version, _) in packages(path).items() if name in tested}
    assert found == {name: tested[name] for name in found}


def test_the_base_install_is_locked_within_its_floors():
    found = packages(ROOT / "requirements" / "base.txt")
    for text in PROJECT["dependencies"]:
        needed = Requirement(text)
        version, _ = found[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), text
    assert not {"torch", "deepspeed", "timm"} & found.keys()


def test_the_tools_are_locked():
    wanted = (ROOT / "requirements" / "tools.in").read_text().splitlines()
    found = packages(ROOT / "requirements" / "tools.txt")
    assert {canonicalize_name(line) for line in wanted if line and not line.startswith("#")} <= found.keys()


def test_loaders_with_known_holes_are_not_installed():
    floors = {needed.name: needed.specifier for needed in map(Requirement, PROJECT["optional-dependencies"]["train"])}
    assert not floors["torch"].contains("2.9.1")  # CVE-2026-24747
    assert not floors["deepspeed"].contains("0.15.1")  # CVE-2024-43497
