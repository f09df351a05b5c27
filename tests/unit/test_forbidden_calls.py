"""What no line of ours does: hand text to a shell, run what it reads, or unpickle freely."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("src", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

_MODULES = re.compile(r"(pickle|_pickle|cPickle|dill|cloudpickle|marshal|shelve|pty|commands|torch\.distributed\.rpc)")
_CALLS = re.compile(
    r"eval|exec|compile|__import__"
    r"|os\.(system|popen|exec[lv]\w*|spawn\w*)|subprocess\.(getoutput|getstatusoutput)|asyncio\.create_subprocess_shell"
    r"|.*_object(_list)?|(.*\.)?(rpc_sync|rpc_async|extractall|unsafe_load|full_load)|yaml\.load|tempfile\.mktemp"
)
_UNPICKLES = {"unpickler.py": "parses CIFAR's with stand-ins for every name"}
_STARTS_AGAIN = {"allocator.py": "a rank replaces itself by itself, with another allocator"}


def offences(source):
    """What is wrong with a program's text, as `line: words`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{one.name}" for one in node.names)]
        else:
            names = []
        yield from (f"{node.lineno}: import {name}" for name in names if _MODULES.fullmatch(name))
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {found}" for found in _of_call(node))


def _of_call(node):
    name = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if _CALLS.fullmatch(name):
        yield name
    if name in ("torch.load", "load_state_dict") and given.get("weights_only") != "True":
        yield f"{name} without weights_only"
    for word, value in (("shell", "True"), ("weights_only", "False"), ("allow_pickle", "True")):
        if given.get(word) == value:
            yield f"{word}={value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_runs_a_shell(path):
    meant = {"import pickle": _UNPICKLES, "os.execve": _STARTS_AGAIN}
    found = [
        one
        for one in offences(path.read_text())
        if not any(words in one and path.name in files for words, files in meant.items())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.distributed.rpc",
        "from torch.distributed import rpc",
        "subprocess.run(words, shell=True)",
        "os.system('rm')",
        "os.popen('ls')",
        "eval(text)",
        "exec(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "dist.all_gather_object(found, mine)",
        "dist.broadcast_object_list(found)",
        "np.load(path, allow_pickle=True)",
        "tarfile.open(path).extractall(folder)",
        "yaml.load(text)",
    ],
)
def test_the_gate_sees_each_of_them(source):
    assert list(offences(source))


@pytest.mark.parametrize(
    "source", ["model.eval()", "re.compile('a')", "torch.load(path, weights_only=True)", "block.compile()"]
)
def test_the_gate_lets_what_is_harmless_pass(source):
    assert not list(offences(source))
