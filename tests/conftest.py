import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def make():
    """`tests/golden/make_study.py`: writes launches with the real schema and writer."""
    path = Path(__file__).parent / "golden" / "make_study.py"
    spec = importlib.util.spec_from_file_location("golden_make_study", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
