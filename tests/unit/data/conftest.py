import pytest
from published import picture, publish

from vitscale.data.releases import RELEASES


@pytest.fixture
def fake_cifar10(monkeypatch):
    """`cifar10` is, for one test, a tiny release in both forms; yields the binary one."""
    binary = publish("cifar10", "binary")
    monkeypatch.setitem(RELEASES, "cifar10", (binary.release, publish("cifar10", "python").release))
    return binary


@pytest.fixture
def image_folder(tmp_path):
    """train: 2 classes of 3 and 2 images, val: 1 each."""
    root = tmp_path / "Pets & Co"
    for name, count in (("cat", 3), ("dog", 2)):
        for number in range(count):
            picture(root / "train" / name / f"{number}.png", colour=(10 * number, 0, 99))
        picture(root / "val" / name / "0.jpg", quality=95)
    return root
