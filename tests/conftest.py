import importlib.util
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from vitscale import cli


@pytest.fixture(scope="session")
def make():
    """`tests/golden/make_study.py`: writes launches with the real schema and writer."""
    path = Path(__file__).parent / "golden" / "make_study.py"
    spec = importlib.util.spec_from_file_location("golden_make_study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def error(self):
        """The `error:` line, once everything about its form is right."""
        lines = self.err.rstrip("\n").split("\n")
        first = next(index for index, line in enumerate(lines) if line.startswith("error: "))
        rest = lines[first + 1 :]
        assert rest in ([], ["", rest[-1]] if rest else []), f"not an error line, a blank line, a hint line: {lines}"
        assert not rest or rest[-1].startswith("hint: "), rest
        assert "Traceback" not in self.err
        return lines[first].removeprefix("error: ")

    @property
    def hint(self):
        return self.err.rstrip("\n").split("\n")[-1].removeprefix("hint: ")


@pytest.fixture
def vitscale(monkeypatch, capfd, tmp_path):
    """Run a command line in this process, in an empty working folder with an empty data folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("VITSCALE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["vitscale", *map(str, words)])
        code = cli._status()
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    # A command that is over ignores signals; what other tests start would inherit that.
    heard = {number: signal.getsignal(number) for number in (signal.SIGINT, *cli._STOPS)}
    yield run
    for number, handler in heard.items():
        signal.signal(number, handler)
