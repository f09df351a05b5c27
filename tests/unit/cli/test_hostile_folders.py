"""Results folders and files that somebody else made: nothing is written through a link, nothing is read without end."""

import pytest

from vitscale.config.texts import LARGEST_BYTES

SIMULATE = ("run", "quick", "--launcher", "simulate", "hardware.name=h100", "world_size=1")


@pytest.mark.parametrize("name", ["runs", "report", ".lock", "analysis.json", "report/figures", "report/index.html"])
def test_nothing_is_written_through_a_link_in_a_results_folder(vitscale, simulated, tmp_path, name):
    outside = tmp_path / "outside"
    (simulated / name).rename(outside)
    (simulated / name).symlink_to(outside)
    before = sorted((str(path), path.stat().st_mtime_ns) for path in [outside, *outside.rglob("*")])
    for words in ((*SIMULATE, "--out", simulated), ("report", simulated)):
        ran = vitscale(*words)
        assert ran.code == 10
        assert ran.error.startswith(f"`{name}` in `{simulated}` is a link")
    assert sorted((str(path), path.stat().st_mtime_ns) for path in [outside, *outside.rglob("*")]) == before


def test_a_results_folder_may_itself_be_a_link_and_keep_checkpoints_elsewhere(vitscale, simulated, tmp_path):
    (tmp_path / "disk").mkdir()
    (simulated / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(simulated)
    assert vitscale("report", tmp_path / "link").code == 0


@pytest.fixture
def endless(tmp_path):
    """Files that do not end, or are larger than anyone writes."""
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * LARGEST_BYTES + b"\n")
    link = tmp_path / "zero.toml"
    link.symlink_to("/dev/zero")
    return large, link


def test_a_file_without_end_is_refused(vitscale, endless):
    for path in endless:
        for words in (("plan", path), ("plan", "quick", f"deepspeed.file={path}")):
            ran = vitscale(*words)
            assert (ran.code, "it is larger than 262,144 bytes" in ran.error) == (2, True)
        ran = vitscale("plan", "quick", f"launch.hostfile={path}")
        assert (ran.code, "it is larger than 262,144 bytes" in ran.error) == (3, True)


@pytest.mark.parametrize("deep", ["a = " + "[" * 100_000, "[a" + ".a" * 10_000 + "]", "a = " + "{a=" * 50_000])
def test_a_study_of_endless_depth_is_refused(vitscale, tmp_path, deep):
    (tmp_path / "deep.toml").write_text(deep + "\n")
    assert vitscale("plan", tmp_path / "deep.toml").code == 2


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"a":' * 50_000, "{a:" * 50_000])
def test_a_deepspeed_file_of_endless_depth_is_refused(vitscale, tmp_path, deep):
    (tmp_path / "deep.json").write_text(deep)
    ran = vitscale("plan", "quick", f"deepspeed.file={tmp_path}/deep.json")
    assert (ran.code, ran.out) == (2, "")
    assert len(deep) < LARGEST_BYTES
