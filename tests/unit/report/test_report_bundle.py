"""The Vega bundle is built once and kept; a cache that cannot be used costs time only."""

import pytest
import vl_convert

from vitscale.report import bundle as bundles


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Calls of vl-convert, and an empty cache."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet, vl_version: calls.append(snippet) or "drawn()")
    bundles.bundle.cache_clear()
    yield calls
    bundles.bundle.cache_clear()


def test_it_is_built_once_and_read_afterwards(built):
    assert bundles.bundle("x", "6.1") == "drawn()"
    bundles.bundle.cache_clear()
    assert bundles.bundle("x", "6.1") == "drawn()"
    assert built == ["x"]
    bundles.bundle("x", "6.2")
    bundles.bundle("y", "6.1")
    assert built == ["x", "x", "y"]


def test_a_cache_that_cannot_be_written_is_done_without(built, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    assert bundles.bundle("x", "6.1") == "drawn()"
    bundles.bundle.cache_clear()
    assert bundles.bundle("x", "6.1") == "drawn()"
    assert len(built) == 2


def test_a_bundle_that_would_end_its_element_is_never_used(built, monkeypatch):
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet, vl_version: "a</SCRIPT>b")
    with pytest.raises(AssertionError):
        bundles.bundle("x", "6.1")
