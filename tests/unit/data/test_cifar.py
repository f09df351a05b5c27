import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published import publish, tar_of

from vitscale.data import cifar
from vitscale.data.releases import RELEASES
from vitscale.errors import DataError

FORMS = [(name, form) for name in ("cifar10", "cifar100") for form in ("binary", "python")]


@pytest.fixture(scope="module", params=FORMS, ids="-".join)
def published(request):
    name, form = request.param
    return name, publish(name, form)


@pytest.fixture(scope="module")
def binary():
    return publish("cifar10", "binary")


def decoded(content, split):
    part = getattr(content, split)
    return np.concatenate(list(part.blocks)), part.labels


def read(name, path, published):
    return cifar.content(name, path, [published.release])


def read_archive(tmp_path, published, members):
    """Read an archive of these members, pinned as if it had been published so."""
    archive = tar_of(members)
    path = tmp_path / "given.tar.gz"
    path.write_bytes(archive)
    return cifar.content("cifar10", path, [published.pinned(archive)])


def members_of(published):
    return [(f"{published.release.folder}/{name}", data) for name, data in published.files.items()]


@pytest.mark.parametrize("shape", ["archive", "folder", "folder around it"])
def test_both_forms_are_read_pixel_by_pixel_from_archive_and_folder(published, shape, tmp_path):
    name, one = published
    if shape == "archive":
        path = tmp_path / "anything.tar.gz"
        path.write_bytes(one.archive)
    else:
        path = one.folder(tmp_path) if shape == "folder" else one.folder(tmp_path).parent
    content = read(name, path, one)
    for split in ("train", "test"):
        images, labels = decoded(content, split)
        assert (images == one.images[split]).all()
        assert (labels == one.labels[split]).all()
    assert content.classes == tuple(f"class {number}" for number in range(one.release.classes))
    assert str(tmp_path) not in content.source


def test_what_is_published_has_its_real_sizes_and_every_image_file_is_pinned():
    for name, releases in RELEASES.items():
        for release in releases:
            assert len(release.train) * release.file_images["train"] == 50_000
            assert len(release.test) * release.file_images["test"] == 10_000
            assert {*release.train, *release.test} <= set(release.pins)
            lengths = {"sha256": 64, "md5": 32}
            assert all(
                len(pin.digest) == lengths[pin.algorithm] for pin in (release.archive_pin, *release.pins.values())
            )
            assert release.classes == int(name.removeprefix("cifar"))


def test_an_altered_archive_is_refused_with_both_checksums(binary, tmp_path):
    altered = bytearray(binary.archive)
    altered[len(altered) // 2] ^= 1
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(altered)
    with pytest.raises(DataError) as caught:
        read("cifar10", path, binary)
    assert binary.release.archive_pin.actual(bytes(altered)) in caught.value.message
    assert binary.release.archive_pin.digest in caught.value.message
    assert "cifar-10-batches-bin" in caught.value.hint


@settings(max_examples=15)
@given(st.floats(0, 0.999))
def test_a_truncated_archive_is_refused_with_both_sizes(binary, tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cut") / "cifar-10-binary.tar.gz"
    kept = int(len(binary.archive) * share)
    path.write_bytes(binary.archive[:kept])
    with pytest.raises(DataError, match=f"has {kept} bytes, .* has {len(binary.archive)}"):
        read("cifar10", path, binary)


def test_a_truncated_binary_file_is_named_with_both_sizes(binary, tmp_path):
    folder = binary.folder(tmp_path)
    (folder / "data_batch_3.bin").write_bytes(binary.files["data_batch_3.bin"][:-5])
    with pytest.raises(DataError, match=r"`data_batch_3.bin` .* has 61455 bytes, expected 61460"):
        read("cifar10", folder, binary)


@pytest.mark.parametrize("form", ["binary", "python"])
def test_one_changed_bit_in_an_extracted_file_is_refused_with_both_checksums(form, tmp_path):
    one = publish("cifar10", form)
    folder, name = one.folder(tmp_path), one.release.train[1]
    altered = bytearray(one.files[name])
    altered[-40] ^= 1
    (folder / name).write_bytes(altered)
    with pytest.raises(DataError) as caught:
        read("cifar10", folder, one)
    pin = one.release.pins[name]
    assert name in caught.value.message
    assert pin.digest in caught.value.message
    assert pin.actual(bytes(altered)) in caught.value.message


def test_the_archive_of_the_other_cifar_is_recognised(binary, monkeypatch, tmp_path):
    other = publish("cifar100", "binary")
    monkeypatch.setitem(RELEASES, "cifar100", (other.release,))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(other.archive)
    with pytest.raises(DataError, match="is the archive of `cifar100`, not of `cifar10`"):
        read("cifar10", path, binary)


def test_a_path_with_nothing_to_read_is_refused(binary, tmp_path):
    with pytest.raises(DataError, match="holds no `cifar-10-batches-bin`"):
        read("cifar10", tmp_path, binary)
    with pytest.raises(DataError, match="No such file"):
        read("cifar10", tmp_path / "absent.tar.gz", binary)


def test_a_named_pipe_is_refused_at_once(binary, tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.tar.gz")
    with pytest.raises(DataError, match="not a regular file"):
        read("cifar10", tmp_path / "pipe.tar.gz", binary)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "cifar-10-batches-bin/../../evil"])
def test_a_member_outside_its_folder_is_refused(binary, tmp_path, name):
    with pytest.raises(DataError, match="a name outside its folder"):
        read_archive(tmp_path, binary, [(name, b"x"), *members_of(binary)])
    assert sorted(item.name for item in tmp_path.iterdir()) == ["given.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused_wanted_or_not(binary, tmp_path, kind):
    for name in ("cifar-10-batches-bin/data_batch_1.bin", "cifar-10-batches-bin/other"):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        with pytest.raises(DataError, match="a link or a device"):
            read_archive(tmp_path, binary, [(info, b""), *members_of(binary)])


def test_a_member_given_twice_or_not_at_all_is_refused(binary, tmp_path):
    members = members_of(binary)
    with pytest.raises(DataError, match=r"`cifar-10-batches-bin/data_batch_1\.bin` twice"):
        read_archive(tmp_path, binary, [members[0], *members])
    with pytest.raises(DataError, match=r"holds no `cifar-10-batches-bin/data_batch_1\.bin`"):
        read_archive(tmp_path, binary, members[1:])


def test_other_plain_members_are_passed_over(binary, tmp_path):
    content = read_archive(tmp_path, binary, [("cifar-10-batches-bin/readme.html", b"hello"), *members_of(binary)])
    assert (decoded(content, "test")[0] == binary.images["test"]).all()


def test_a_member_that_claims_ten_gigabytes_is_refused_before_it_is_read(binary, tmp_path):
    info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    info.size = 10 << 30
    archive = __import__("gzip").compress(info.tobuf() + bytes(10240))
    path = tmp_path / "huge.tar.gz"
    path.write_bytes(archive)
    with pytest.raises(DataError, match="10,737,418,240 bytes, over the limit"):
        cifar.content("cifar10", path, [binary.pinned(archive)])


def test_a_decompression_bomb_stops_at_the_limit(binary, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "_UNPACKED_LIMIT_BYTES", 1 << 20)
    with pytest.raises(DataError, match="unpacks to more than 1,048,576 bytes"):
        read_archive(tmp_path, binary, [("cifar-10-batches-bin/zeros", bytes(4 << 20)), *members_of(binary)])


def test_an_archive_of_endless_members_is_refused(binary, tmp_path):
    with pytest.raises(DataError, match="more than 64 members"):
        read_archive(tmp_path, binary, [(f"m{number}", b"") for number in range(65)])


@pytest.mark.parametrize("damage", ["not gzip", "cut gzip", "not tar"])
def test_a_damaged_archive_is_an_error_in_words(binary, tmp_path, damage):
    import gzip

    broken = {"not gzip": b"hello", "cut gzip": binary.archive[:-2000], "not tar": gzip.compress(b"hello" * 999)}
    path = tmp_path / "x.tar.gz"
    path.write_bytes(broken[damage])
    with pytest.raises(DataError, match=r"does not unpack|cut short|holds no"):
        cifar.content("cifar10", path, [binary.pinned(broken[damage])])


def test_a_label_out_of_range_is_refused(binary, tmp_path):
    files = dict(binary.files)
    files["test_batch.bin"] = b"\x0a" + files["test_batch.bin"][1:]
    with pytest.raises(DataError, match="has the label 10, expected 0 to 9"):
        read_archive(tmp_path, binary, [(f"cifar-10-batches-bin/{name}", data) for name, data in files.items()])


def test_the_bytes_that_were_checked_are_the_bytes_that_are_parsed(binary, tmp_path, monkeypatch):
    """Swapping the file after it was read changes nothing: it is opened once."""
    path = tmp_path / "x.tar.gz"
    path.write_bytes(binary.archive)
    real, opened = cifar.read_bounded, []

    def swap(given, limit_bytes):
        data = real(given, limit_bytes)
        opened.append(given)
        given.write_bytes(b"something else")
        return data

    monkeypatch.setattr(cifar, "read_bounded", swap)
    content = read("cifar10", path, binary)
    assert opened == [path]
    assert (decoded(content, "train")[0] == binary.images["train"]).all()
