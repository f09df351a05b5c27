import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from published import picture

from vitscale.data import folders, imagefolder
from vitscale.data.prepare import prepare
from vitscale.data.reader import open_split
from vitscale.errors import DataError

SIDE = 8


def scan(path, name="imagefolder"):
    return folders.scan(name, path)


def refused(path, name="imagefolder"):
    with pytest.raises(DataError) as caught:
        scan(path, name)
    return caught.value


def touch(path, data=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def thousand(tmp_path):
    """An ImageNet of 120 classes with one file per split; nothing in it is an image."""
    root = tmp_path / "imagenet"
    for number in range(120):
        for split in ("train", "val"):
            touch(root / split / f"n{number:08d}" / "1.JPEG")
    return root


def test_classes_are_numbered_in_the_order_of_their_names(image_folder):
    (image_folder / "train" / "Zebra").mkdir()
    (image_folder / "val" / "Zebra").mkdir()
    picture(image_folder / "train" / "Zebra" / "1.png")
    picture(image_folder / "val" / "Zebra" / "1.png")
    listing = scan(image_folder)
    assert listing.classes == ("Zebra", "cat", "dog")
    assert [(image.path, image.label) for image in listing.test] == [
        ("val/Zebra/1.png", 0), ("val/cat/0.jpg", 1), ("val/dog/0.jpg", 2),
    ]  # fmt: skip
    assert [image.path for image in listing.train] == sorted(image.path for image in listing.train)


def test_training_parts_are_joined_and_the_first_test_folder_is_taken(tmp_path):
    for folder in ("train.X1", "train.X2", "val.X", "test"):
        touch(tmp_path / folder / "a" / f"{folder}.png")
    listing = scan(tmp_path)
    assert [image.path for image in listing.train] == ["train.X1/a/train.X1.png", "train.X2/a/train.X2.png"]
    assert [image.path for image in listing.test] == ["val.X/a/val.X.png"]


def test_hidden_files_and_other_endings_are_passed_over(image_folder):
    before = scan(image_folder)
    for name in (".DS_Store", ".hidden.png", "notes.txt", "Thumbs.db"):
        touch(image_folder / "train" / "cat" / name)
    assert scan(image_folder) == before


def test_the_fingerprint_follows_paths_and_sizes_and_not_the_place(image_folder, tmp_path):
    before = scan(image_folder).fingerprint()
    assert scan(shutil.copytree(image_folder, tmp_path / "copy")).fingerprint() == before
    first = image_folder / "train" / "cat" / "0.png"
    renamed = first.rename(first.with_name("00.png"))
    assert scan(image_folder).fingerprint() != before
    renamed.rename(first)
    assert scan(image_folder).fingerprint() == before
    first.write_bytes(first.read_bytes() + b"\0")
    assert scan(image_folder).fingerprint() != before


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda root: shutil.rmtree(root / "val"), "has no `val` or `test` folder"),
        (lambda root: shutil.rmtree(root / "train"), "has no `train` folder"),
        (lambda root: shutil.rmtree(root / "val" / "dog"), "no test folder for 1 classes, first `dog`"),
        (
            lambda root: shutil.rmtree(root / "train" / "dog"),
            "class `dog` of `Pets & Co` has test images and no",
        ),
        (lambda root: (root / "val" / "dog" / "0.jpg").unlink(), "class folder `val/dog` of `Pets & Co` has no images"),
        (lambda root: (root / "train" / "cat" / "deep").mkdir(), "`train/cat/deep` is a folder inside a class folder"),
        (
            lambda root: (root / "train" / "cat" / "l.png").symlink_to("nowhere"),
            "`train/cat/l.png` is a link that",
        ),
        (lambda root: (root / "train" / "cat" / "l.png").symlink_to("/etc/passwd"), "leaves the folder `Pets & Co`"),
        (lambda root: (root / "train" / "cat" / "l.png").symlink_to("l.png"), "leads nowhere"),
        (
            lambda root: (root / "train" / "cat" / "loop").symlink_to(root),
            "`train/cat/loop` is a folder inside a class",
        ),
        (
            lambda root: (root / "train" / "loop").symlink_to(root / "train"),
            "no test folder for 1 classes, first `loop`",
        ),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")], "has no class folders"),
        (shutil.rmtree, "is not a folder"),
    ],
)
def test_a_folder_of_another_layout_is_refused_by_what_is_wrong(image_folder, spoil, complaint):
    """Fault 29."""
    spoil(image_folder)
    assert complaint in refused(image_folder).message


def test_a_link_inside_the_folder_is_followed(image_folder):
    (image_folder / "train" / "cat" / "again.png").symlink_to("0.png")
    assert len(scan(image_folder).train) == 6


@pytest.mark.parametrize("file", ["classes.txt", "Labels.json"])
def test_a_list_selects_the_hundred_classes(thousand, file):
    chosen = [f"n{number:08d}" for number in range(119, 19, -1)]
    text = json.dumps(dict.fromkeys(chosen, "a fish")) if file == "Labels.json" else "# chosen\n\n" + "\n".join(chosen)
    (thousand / file).write_text(text)
    listing = scan(thousand, "imagenet100")
    assert listing.classes == tuple(sorted(chosen))
    assert {image.label for image in listing.train} == set(range(100))


def test_a_hundred_folders_need_no_list(thousand):
    for number in range(100, 120):
        for split in ("train", "val"):
            shutil.rmtree(thousand / split / f"n{number:08d}")
    assert len(scan(thousand, "imagenet100").classes) == 100


def test_another_number_of_classes_is_refused_with_the_way_to_choose(thousand):
    error = refused(thousand, "imagenet100")
    assert "has 120 training class folders, `imagenet100` has 100" in error.message
    assert "classes.txt" in error.hint
    (thousand / "classes.txt").write_text("n00000000\n")
    assert "has 1 classes in its list" in refused(thousand, "imagenet100").message


def test_a_listed_class_that_is_not_there_is_named(thousand):
    names = [f"n{number:08d}" for number in range(99)]
    (thousand / "classes.txt").write_text("\n".join([*names, "../../etc"]))
    assert "no training folder for 1 classes, first `../../etc`" in refused(thousand, "imagenet100").message


@pytest.mark.parametrize("text", [b"[1", b"3", b"\xff", b"[]" + b" " * (1 << 20)])
def test_a_list_that_is_none_is_refused(thousand, text):
    (thousand / "Labels.json").write_bytes(text)
    assert "`Labels.json` of `imagenet` is not a class list" in refused(thousand, "imagenet100").message


def test_a_list_that_is_a_link_out_of_the_folder_is_refused(thousand, tmp_path):
    (tmp_path / "secret").write_text("n00000000\n")
    (thousand / "classes.txt").symlink_to(tmp_path / "secret")
    assert "`classes.txt` is a link that leaves" in refused(thousand, "imagenet100").message


@pytest.mark.parametrize("mode", sorted(imagefolder.MODES - {"LA", "PA"}))
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    ending = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    options = {"quality": 100, "subsampling": 0} if ending == "jpg" else {}
    colour = (255, 255, 255) if mode == "1" else (90, 90, 90)
    image = imagefolder.read_image(picture(tmp_path / f"a.{ending}", colour=colour, mode=mode, **options), SIDE)
    assert image.shape == (SIDE, SIDE, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - colour[0]).max() <= 4


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_every_format_is_read(tmp_path, ending):
    image = imagefolder.read_image(picture(tmp_path / f"a.{ending}", colour=(200, 30, 60)), SIDE)
    assert np.abs(image.astype(int) - (200, 30, 60)).max() <= 6


def test_the_short_side_is_scaled_and_the_middle_cropped(tmp_path):
    """A wide picture, red left, green in the middle third, blue right: only the middle is left."""
    stripes = np.zeros((30, 90, 3), np.uint8)
    for place in range(3):
        stripes[:, 30 * place : 30 * (place + 1), place] = 255
    path = tmp_path / "wide.png"
    Image.fromarray(stripes).save(path)
    image = imagefolder.read_image(path, 10)
    assert image.shape == (10, 10, 3)
    assert (image[:, 2:8] == (0, 255, 0)).all()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.write_bytes(b"not an image"), OSError),
        (lambda path: path.write_bytes(b""), OSError),
        (lambda path: path.write_bytes(picture(path.with_name("b.png"), size=(99, 99)).read_bytes()[:100]), OSError),
        (lambda path: Image.fromarray(np.zeros((9, 9), np.uint16)).save(path), ValueError),
        (lambda path: picture(path, size=(1, 60_000)), ValueError),
        (lambda path: Image.new("RGB", (9, 9)).save(path, format="GIF"), OSError),
    ],
)
def test_what_cannot_be_decoded_is_an_error(tmp_path, make, complaint):
    path = tmp_path / "a.png"
    make(path)
    with pytest.raises(complaint):
        imagefolder.read_image(path, 256)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(imagefolder, "MAX_PIXELS", 1000)
    with pytest.raises(ValueError, match="40x30 pixels are over the limit of 1,000"):
        imagefolder.read_image(picture(tmp_path / "a.png"), SIDE)


def test_corrupt_images_of_both_splits_are_named_together_and_nothing_is_prepared(image_folder, tmp_path):
    (image_folder / "train" / "cat" / "1.png").write_bytes(b"torn")
    (image_folder / "val" / "dog" / "0.jpg").write_bytes(b"torn too")
    root = tmp_path / "store"
    with pytest.raises(DataError, match="2 image files cannot be read") as caught:
        prepare("imagefolder", root, source=image_folder)
    assert "`train/cat/1.png`: not a JPEG, PNG, WEBP, BMP image" in caught.value.message
    assert "`val/dog/0.jpg`" in caught.value.message
    assert [path.name for path in root.iterdir() if path.is_dir()] == []


def test_of_many_corrupt_images_the_first_are_named_and_the_rest_counted(image_folder, tmp_path):
    for number in range(25):
        touch(image_folder / "train" / "cat" / f"bad{number:02d}.png", b"torn")
    with pytest.raises(DataError, match=r"25 image files cannot be read: .*; and 15 more") as caught:
        prepare("imagefolder", tmp_path / "store", source=image_folder)
    assert caught.value.message.count("torn") == 0
    assert caught.value.message.count(".png") == 10


def test_the_disk_is_checked_before_an_image_is_decoded(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(imagefolder, "read_image", lambda path, side: pytest.fail("decoded"))
    with pytest.raises(DataError, match="1,000 bytes free"):
        prepare("imagefolder", tmp_path / "store", source=image_folder)


def test_a_prepared_folder_holds_its_pictures_in_order(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(imagefolder, "_BLOCK_IMAGES", 2)
    root = tmp_path / "store"
    prepare("imagefolder", root, source=image_folder)
    train = open_split("imagefolder", "train", root)
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.take(np.arange(5))[:, 100, 100].tolist() == [
        [0, 0, 99],
        [10, 0, 99],
        [20, 0, 99],
        [0, 0, 99],
        [10, 0, 99],
    ]
