import hashlib
import http.client
import io
import ssl
import urllib.error
import urllib.request
from email.message import Message

import pytest

from vitscale.data import download
from vitscale.data.prepare import prepare
from vitscale.data.reader import open_split
from vitscale.data.releases import Pin
from vitscale.errors import DataError, UsageError

URL = "https://example.org/data.tar.gz"
DATA = bytes(range(256)) * 20
PIN = Pin("sha256", hashlib.sha256(DATA).hexdigest())


class Server:
    """An opener that answers with these bytes, or raises this error."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def open(self, fullurl, data=None, timeout=None):
        self.asked.append((fullurl, timeout))
        if isinstance(self.answer, Exception):
            raise self.answer
        return io.BytesIO(self.answer)


def fetch(folder, server, url=URL):
    download.fetch(url, folder / "data.tar.gz", PIN, len(DATA), lambda message: None, server)


def test_a_file_with_the_right_checksum_arrives_whole(tmp_path):
    server = Server(DATA)
    fetch(tmp_path, server)
    assert (tmp_path / "data.tar.gz").read_bytes() == DATA
    assert [item.name for item in tmp_path.iterdir()] == ["data.tar.gz"]
    assert server.asked == [(URL, download.READ_TIMEOUT_S)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (DATA[:-1], "ended after 5,119 of 5,120 bytes"),
        (DATA + b"x", "more than 5,120 bytes"),
        (DATA[:-1] + b"x", f"has sha256 .*, expected {PIN.digest}"),
        (b"", "ended after 0"),
        (TimeoutError("timed out"), "cannot be downloaded: timed out"),
        (urllib.error.URLError("no route"), "cannot be downloaded: no route"),
        (http.client.IncompleteRead(b""), "cannot be downloaded"),
        (ssl.SSLError("bad certificate"), "cannot be downloaded"),
    ],
)
def test_any_other_answer_leaves_nothing_behind(tmp_path, answer, message):
    with pytest.raises(DataError, match=message) as caught:
        fetch(tmp_path, Server(answer))
    assert "--from PATH" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://example.org/x", "https:///x"])
def test_only_https_is_opened(tmp_path, url):
    server = Server(DATA)
    with pytest.raises(DataError, match="is not https"):
        fetch(tmp_path, server, url)
    assert server.asked == []


@pytest.mark.parametrize("target", ["http://example.org/x", "file:///etc/passwd"])
def test_a_redirect_away_from_https_is_refused(target):
    handler = download._SecureRedirects()
    with pytest.raises(DataError, match="is not https"):
        handler.redirect_request(urllib.request.Request(URL), io.BytesIO(), 302, "Found", Message(), target)


def test_a_redirect_to_https_is_followed():
    handler = download._SecureRedirects()
    followed = handler.redirect_request(
        urllib.request.Request(URL), io.BytesIO(), 302, "Found", Message(), "https://example.com/y"
    )
    assert followed.full_url == "https://example.com/y"


def test_the_opener_knows_no_other_scheme():
    opener = download.secure_opener()
    assert {"http", "ftp", "file", "data"}.isdisjoint(opener.handle_open)
    assert "https" in opener.handle_open


def test_a_slow_answer_ends_at_the_deadline(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(download.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(download, "TOTAL_TIMEOUT_S", 0.5)
    with pytest.raises(DataError, match="took more than"):
        fetch(tmp_path, Server(DATA))


def test_a_download_is_prepared_and_its_archive_is_not_kept(fake_cifar10, tmp_path, monkeypatch):
    server = Server(fake_cifar10.archive)
    monkeypatch.setattr(download, "secure_opener", lambda: server)
    prepare("cifar10", tmp_path, download=True)
    assert server.asked[0][0] == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert sorted(item.name for item in tmp_path.iterdir()) == [".cifar10.lock", "cifar10"]
    train = open_split("cifar10", "train", tmp_path)
    assert (train.labels == fake_cifar10.labels["train"]).all()
    prepare("cifar10", tmp_path, download=True)
    assert len(server.asked) == 1


def test_a_refused_download_leaves_nothing_prepared(fake_cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "secure_opener", lambda: Server(fake_cifar10.archive[:-1]))
    with pytest.raises(DataError, match="ended after"):
        prepare("cifar10", tmp_path, download=True)
    assert [item.name for item in tmp_path.iterdir()] == [".cifar10.lock"]


def test_a_folder_cannot_be_downloaded_nor_a_download_be_combined_with_a_source(tmp_path):
    with pytest.raises(UsageError, match="`imagefolder` cannot be downloaded"):
        prepare("imagefolder", tmp_path, download=True)
    with pytest.raises(UsageError, match="both asked for"):
        prepare("cifar10", tmp_path, source=tmp_path, download=True)
