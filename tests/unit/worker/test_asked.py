"""A signal that is asked for in a file arrives once."""

import signal

import pytest

from vitscale.worker import asked


class Over(Exception):
    """The test is."""


@pytest.fixture
def heard():
    """Signals that this process got."""
    got = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    yield got
    signal.signal(signal.SIGUSR2, before)


def test_each_name_in_the_file_is_a_signal_once_and_half_a_name_is_waited_for(tmp_path, heard, monkeypatch):
    path, counts = tmp_path / "asked", []
    texts = iter(["", "SIGUSR2\n", "SIGUSR2\nSIGU", "SIGUSR2\nSIGUSR2\n", "SIGUSR2\nSIGUSR2\n"])

    def sleep(seconds):
        assert seconds == 2.0
        counts.append(len(heard))
        text = next(texts, None)
        if text is None:
            raise Over
        path.write_text(text)

    monkeypatch.setattr(asked.time, "sleep", sleep)
    with pytest.raises(Over):
        asked._look(path, 2.0)
    assert counts == [0, 0, 1, 1, 2, 2]
