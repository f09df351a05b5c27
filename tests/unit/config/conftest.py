import pytest

STUDY = """\
schema_version = 1
name = "mine"
protocol = "strong"
[model]
name = "vit_tiny_patch16_224"
[data]
name = "digits"
[axes]
world_size = [1, 2]
global_batch = 64
"""


@pytest.fixture
def written(tmp_path):
    """Write a study of the smallest text plus `more`, or with one piece of it replaced; returns its path as text."""

    def write(more="", replacing=None):
        text = STUDY if replacing is None else STUDY.replace(*replacing)
        assert replacing is None or text != STUDY
        path = tmp_path / "mine.toml"
        path.write_text(text + more, encoding="utf-8")
        return str(path)

    return write
