"""Who may import whom: the contracts of pyproject.toml, and what import-linter cannot see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitscale

PACKAGE = Path(vitscale.__file__).parent
MODULES = sorted(
    ".".join(("vitscale", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
OUTSIDE_WORKER = [name for name in MODULES if not name.startswith("vitscale.worker") and not name.endswith("__main__")]


def imported(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_contracts_hold():
    ran = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=PACKAGE.parents[1],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    assert "0 broken" in ran.stdout


def test_every_module_outside_the_worker_loads_without_torch():
    program = (
        "import importlib, sys\n"
        f"for name in {OUTSIDE_WORKER!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'deepspeed', 'sklearn'} & sys.modules.keys()\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_worker_does_need_torch():
    program = "import vitscale.worker.loop, sys; sys.exit('torch' not in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_does_nothing():
    """No environment read, no process, no socket, no file written, no logging set-up."""
    program = (
        "import importlib, logging, sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda event, args: seen.append((event, str(args)[:80])) if event in\n"
        "    {'subprocess.Popen', 'socket.__new__', 'os.system', 'os.mkdir', 'os.remove', 'os.rename'}\n"
        "    or event == 'open' and str(args[1])[:1] in 'wax+' else None)\n"
        f"for name in {OUTSIDE_WORKER!r}: importlib.import_module(name)\n"
        "mine = [one for one in seen if 'pycache' not in one[1]]\n"
        "sys.exit(f'{mine} {logging.root.handlers}' if mine or logging.root.handlers else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("path", sorted((PACKAGE / "worker").rglob("*.py")), ids=lambda path: path.stem)
def test_only_a_few_files_talk_to_other_ranks(path):
    allowed = (
        path.name in ("distributed.py", "comms.py", "links.py", "overhead.py", "sequence.py", "silence.py", "tensor.py")
        or path.parent.name == "engines"
    )
    assert allowed or not any(name.startswith("torch.distributed") for name in imported(path))


def test_files_stay_small():
    """CONTRIBUTING: under 300 lines, 350 with a reason at the top; functions under 60."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if documented else node.lineno
                assert node.end_lineno - start < 60, f"{path.name}: {node.name}"


def test_no_drawer_for_everything():
    for path in PACKAGE.rglob("*"):
        assert path.stem not in ("utils", "util", "common", "helpers", "helper", "manager", "base", "misc"), path
