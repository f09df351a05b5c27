import hashlib
import re

import pytest

from vitscale.data.releases import RELEASES, Pin

ALL = [release for releases in RELEASES.values() for release in releases]
HEX_DIGITS = {"sha256": 64, "md5": 32}


@pytest.mark.parametrize("release", ALL, ids=lambda release: release.archive)
def test_a_release_says_where_it_is_and_what_it_is(release):
    assert release.url == f"https://www.cs.toronto.edu/~kriz/{release.archive}"
    assert release.archive_pin.algorithm == "sha256"
    for pin in (release.archive_pin, *release.pins.values()):
        assert re.fullmatch(rf"[0-9a-f]{{{HEX_DIGITS[pin.algorithm]}}}", pin.digest)


@pytest.mark.parametrize("release", ALL, ids=lambda release: release.archive)
def test_every_file_that_is_unpickled_is_pinned_and_every_pin_is_of_a_file_that_is_read(release):
    assert set(release.pins) <= set(release.members)
    if release.form == "python":
        assert set(release.pins) == set(release.members)
    assert len(set(release.members)) == len(release.members)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_both_forms_of_a_data_set_agree_and_the_one_downloaded_needs_no_unpickling(name):
    binary, python = RELEASES[name]
    assert (binary.form, python.form) == ("binary", "python")
    assert binary.classes == python.classes == int(name.removeprefix("cifar"))
    for release in (binary, python):
        assert len(release.train) * release.file_images["train"] == 50_000
        assert len(release.test) * release.file_images["test"] == 10_000


def test_no_two_files_share_a_checksum():
    digests = [pin.digest for release in ALL for pin in (release.archive_pin, *release.pins.values())]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("algorithm", sorted(HEX_DIGITS))
def test_a_pin_computes_the_checksum_it_is_compared_with(algorithm):
    assert Pin(algorithm, "").actual(b"abc") == hashlib.new(algorithm, b"abc").hexdigest()
