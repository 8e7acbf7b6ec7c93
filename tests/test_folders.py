"""Image files and folders as people have them: against ../cases and plain per-pixel versions."""
import io
import logging
import os
import shutil
import socket
import struct
import sys
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scripts import run
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))
import utils
from input_pipeline import folders, imagenet, load

CASES = Path(__file__).parent / "cases" / "images"


def pixels(path) -> np.ndarray:
    """What the reader makes of a file, (H, W, 3)."""
    image, _ = folders.read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


def one_line(error) -> str:
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000, message
    return message


def cause(path) -> str:
    """The line that refuses a file, without its path."""
    with pytest.raises(folders.ImageError) as error:
        folders.read_image(str(path))
    message = one_line(error)
    assert message.startswith(f"cannot read image {path}: "), message
    return message.removeprefix(f"cannot read image {path}: ")


@pytest.fixture
def lines(monkeypatch):
    """What is logged, line by line."""
    handler, found, log = logging.Handler(), [], logging.getLogger("pdarts")
    handler.emit = lambda record: found.append(record.getMessage())
    log.addHandler(handler)
    monkeypatch.setattr(log, "level", logging.INFO)
    yield found
    log.removeHandler(handler)


# ---- one image

RAMP = np.arange(64).reshape(8, 8) * 1040


def expected_case(name) -> np.ndarray:
    """The right answers in words of the cases' README."""
    rows, columns = np.indices((8, 8))
    inside = (rows >= 2) & (rows <= 5) & (columns >= 2) & (columns <= 5)
    opaque, colour = {
        "rgba.png": (inside, (200, 0, 0)), "la.png": (columns < 4, (30, 30, 30)),
        "palette_transparent.png": (columns % 2 == 0, (10, 20, 30))}[name]
    return np.where(opaque[..., None], colour, 255)


@pytest.mark.parametrize("name", ["rgba.png", "la.png", "palette_transparent.png"])
def test_transparent_cases_are_laid_on_white(name):
    assert np.array_equal(pixels(CASES / name), expected_case(name))
    assert folders.read_image(str(CASES / name))[1]


def test_the_16_bit_case_is_scaled_and_the_cmyk_case_is_red():
    got = pixels(CASES / "gray16.png")
    assert np.array_equal(got, np.rint(RAMP / 257)[..., None].repeat(3, 2)) and got.max() == 255
    assert np.abs(pixels(CASES / "cmyk.jpg").astype(int) - (255, 0, 0)).max() <= 8
    assert not any(folders.read_image(str(CASES / name))[1] for name in ("gray16.png", "cmyk.jpg"))


@pytest.mark.parametrize("name, word", [("float.tif", "floating-point"), ("truncated.jpg", "truncated")])
def test_refused_cases_say_why(name, word):
    assert word in cause(CASES / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif", "a.jp2", "a.pgm"])
def test_16_bit_grey_of_any_format_is_scaled(name, tmp_path):
    values = np.array([[0, 1, 128, 129], [256, 257, 385, 386], [32767, 32768, 65406, 65535]], np.uint16)
    if name == "a.pgm":
        (tmp_path / name).write_bytes(b"P5 4 3 65535\n" + values.astype(">u2").tobytes())
    elif name == "big-endian.tif":
        Image.frombytes("I;16B", (4, 3), values.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(values).save(tmp_path / name)
    # v / 257 is halfway between two numbers for no v
    assert np.array_equal(pixels(tmp_path / name)[..., 0], np.rint(values / 257))


def test_32_bit_integers_are_refused_by_name(tmp_path):
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "a.tif")
    assert "32-bit integer" in cause(tmp_path / "a.tif")


def write_tiff(path, pixels: np.ndarray, kind: int, bits: int | None = None):
    """A TIFF file of any kind of pixels (1 whole numbers, 2 with a sign, 3 floating point), also packed ones."""
    bits = bits or 8 * pixels.itemsize
    width = 8 * pixels.itemsize * pixels.shape[1] // bits
    tags = [(256, 3, width), (257, 3, pixels.shape[0]), (258, 3, bits), (259, 3, 1),
            (262, 3, 1), (273, 4, 122), (277, 3, 1), (279, 4, pixels.nbytes), (339, 3, kind)]
    entries = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + pixels.tobytes())


@pytest.mark.parametrize("dtype, kind, word", [
    (np.int16, 2, "signed 16-bit"), (np.uint32, 1, "32-bit integer"), (np.float32, 3, "floating-point"),
    (np.float64, 3, "64 bits"), (np.float16, 3, "half precision")])
def test_pixels_that_eight_bits_cannot_stand_for_are_named(dtype, kind, word, tmp_path):
    write_tiff(tmp_path / "right.tif", np.full((4, 4), 514, np.uint16), 1)
    assert (pixels(tmp_path / "right.tif") == 2).all()
    write_tiff(tmp_path / "a.tif", np.full((4, 4), 5, dtype), kind)
    assert word in cause(tmp_path / "a.tif") and "convert" in cause(tmp_path / "a.tif")


def test_12_bit_pixels_are_not_taken_for_16_bits(tmp_path):
    write_tiff(tmp_path / "a.tif", np.full((2, 6), 255, np.uint8), 1, bits=12)
    assert Image.open(tmp_path / "a.tif").size == (4, 2) and "12-bit" in cause(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([4095, 2048], ">u2").tobytes())
    assert pixels(tmp_path / "a.pgm")[0, :, 0].tolist() == [255, 128]  # Pillow scales these to 16


def test_pillow_adds_no_warnings(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.tif", compression="tiff_lzw")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:60])
    (tmp_path / "read.py").write_text(
        "import sys\nfrom PIL import Image\nfrom input_pipeline import folders\n"
        "Image.MAX_IMAGE_PIXELS = 40  # the cases have 64\n"
        "folders.read_image(sys.argv[1])\ntry:\n    folders.read_image(sys.argv[2])\n"
        "except folders.ImageError as error:\n    print(error)\n")
    outcome = run(tmp_path / "read.py", CASES / "rgba.png", tmp_path / "cut.tif")
    assert outcome.code == 0 and outcome.out.count("\n") == 1 and not outcome.err, outcome


@pytest.mark.parametrize("mode, key, colour", [
    ("L", 7, (7, 7, 7)), ("RGB", (7, 8, 9), (7, 8, 9)), ("I;16", 771, (3, 3, 3))])
def test_one_colour_declared_transparent_becomes_white(mode, key, colour, tmp_path):
    array = {"L": np.array([[7, 100]], np.uint8), "RGB": np.array([[[7, 8, 9], [100, 100, 100]]], np.uint8),
             "I;16": np.array([[771, 25700]], np.uint16)}[mode]
    image = Image.fromarray(array)
    image.save(tmp_path / "opaque.png")
    assert pixels(tmp_path / "opaque.png").tolist() == [[list(colour), [100, 100, 100]]]
    image.save(tmp_path / "transparent.png", transparency=key)
    assert pixels(tmp_path / "transparent.png").tolist() == [[[255] * 3, [100] * 3]]
    assert folders.read_image(str(tmp_path / "transparent.png"))[1]


def test_half_transparent_pixels_are_mixed_with_white_and_opaque_alpha_is_not_transparent(tmp_path):
    Image.fromarray(np.array([[[100, 0, 255, 128]]], np.uint8)).save(tmp_path / "half.png")
    expected = np.array([100, 0, 255]) * (128 / 255) + 255 * (127 / 255)
    assert np.abs(pixels(tmp_path / "half.png")[0, 0] - expected).max() <= 1
    Image.fromarray(np.array([[[100, 0, 255, 255]]], np.uint8)).save(tmp_path / "opaque.png")
    image, transparent = folders.read_image(str(tmp_path / "opaque.png"))
    assert image.getpixel((0, 0)) == (100, 0, 255) and not transparent


def test_a_rotation_in_the_exif_data_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.new("RGB", (16, 8), "red").save(tmp_path / "turned.jpg", exif=exif)
    image, _ = folders.read_image(str(tmp_path / "turned.jpg"))
    assert image.size == (16, 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_modes_are_read_as_pillow_converts_them(mode, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(9, 7, 3), dtype=np.uint8)).convert(mode)
    image.save(tmp_path / "a.tif")
    assert np.array_equal(pixels(tmp_path / "a.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "ppm", "tif"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_called_that(kind, share, tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{kind}")
    content = (tmp_path / f"a.{kind}").read_bytes()
    (tmp_path / f"a.{kind}").write_bytes(content[:int(share * len(content))])
    assert cause(tmp_path / f"a.{kind}").startswith("truncated; ")


@pytest.mark.parametrize("content", [b"", b"\x89", b"not an image", b"\0" * 100, b"GIF89a", b"BM" + b"\xff" * 50,
                                     b"\x89PNG\r\n\x1a\n" + b"\xff" * 50, b"\xff\xd8\xff" + b"\0" * 50, b"P5 -1 3 9\n"])
def test_what_is_no_image_is_an_error_of_one_line(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    assert "file" in cause(tmp_path / "a.png")


def test_no_permission_and_a_file_that_has_gone_are_named(tmp_path, monkeypatch):
    assert "no longer exists" in cause(tmp_path / "gone.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(Image, "open", refuse)  # the tests may run as root, whom nothing stops
    assert "no permission" in cause(CASES / "rgba.png")


def test_an_image_too_large_is_called_that(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # the cases have 64
    assert "too large" in cause(CASES / "rgba.png")

    def refuse(*args):
        raise MemoryError
    monkeypatch.setattr(Image, "open", refuse)
    assert "too large" in cause(CASES / "rgba.png")


# ---- folders

def save(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def write_tree(root, train=("ant", "bee", "cow"), val=None, count=2):
    """Folders of images whose pixels tell their class: 10 times the letter's place in the alphabet."""
    for split, names in (("train", train), ("val", train if val is None else val)):
        for name in names:
            for i in range(count):
                save(root / split / name / f"{i}.png", 10 * (ord(name[0]) - ord("a")))
    return root


@pytest.mark.parametrize("leftover", [
    ".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/._0.png",
    "@eaDir/0.png", ".hidden.png"])
@pytest.mark.parametrize("place", ["train", "train/bee", "val", "val/bee"])
def test_leftovers_of_other_systems_are_no_classes_and_no_images(leftover, place, tmp_path):
    write_tree(tmp_path)
    expected = load("folder", str(tmp_path), 8)
    path = tmp_path / place / leftover
    path.parent.mkdir(exist_ok=True)
    shutil.copy(CASES / "._gray16.png", path)
    got = load("folder", str(tmp_path), 8)
    assert got.classes == ["ant", "bee", "cow"] and all(map(torch.equal, got[:4], expected[:4]))
    train, val, data = imagenet.loaders(str(tmp_path), 32, 4, 0, 0, "cpu")
    assert data["classes"] == ["ant", "bee", "cow"] and len(train.dataset) == len(val.dataset) == 6


def test_the_leftover_of_the_cases_is_no_image():
    names = [entry.name for entry in folders._list(CASES)["image"]]
    assert sorted(names) == ["cmyk.jpg", "float.tif", "gray16.png", "la.png", "palette_transparent.png", "rgba.png",
                             "truncated.jpg"] and (CASES / "._gray16.png").exists()


def test_a_root_whose_own_path_has_a_dot_is_read(tmp_path):
    write_tree(tmp_path / ".cache" / "set")
    assert len(load("folder", str(tmp_path / ".cache" / "set"), 8).train_images) == 6


def test_images_are_listed_in_the_order_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder
    for name in ("b/0.png", "b/deep/er/1.png", "b-2/0.jpg", "b/deep-er/1.JPEG", "B/1.png", "a/z.png", "a/Z.webp",
                 "a/notes.txt", "a/10.png", "a/9.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    plain = ImageFolder(tmp_path / "train")
    for folder in folders.image_folders(tmp_path):
        assert [(path.replace("val", "train"), label) for path, label in folder.samples] == plain.samples
        assert folder.classes == plain.classes


@pytest.mark.parametrize("val", [("cow",), ("bee", "cow"), ("ant", "cow")])
def test_validation_classes_keep_the_labels_of_training(val, tmp_path, lines):
    write_tree(tmp_path, val=val)
    labels = [["ant", "bee", "cow"].index(name) for name in val for _ in range(2)]
    got = load("folder", str(tmp_path), 8)
    assert got.test_target.tolist() == labels and got.classes == ["ant", "bee", "cow"]
    assert got.test_images[:, 0, 0, 0].tolist() == [10 * label for label in
                                                    (ord(name[0]) - ord("a") for name in val for _ in range(2))]
    missing = sorted({"ant", "bee", "cow"} - set(val))
    line = f"{tmp_path / 'val'} lacks {len(missing)} of 3 training classes: {', '.join(missing)}"
    assert lines[2:] == [line]
    lines.clear()
    _, loader, data = imagenet.loaders(str(tmp_path), 32, 4, 0, 0, "cpu")
    assert torch.cat([y for _, y in loader]).tolist() == labels and data["classes"] == ["ant", "bee", "cow"]
    assert lines[2:] == [line]


def test_of_many_classes_five_are_named_and_all_counted(tmp_path, lines):
    names = [f"c{i:02}" for i in range(12)]
    write_tree(tmp_path, train=names, val=names[7:], count=1)
    folders.image_folders(tmp_path)
    assert lines[2:] == [f"{tmp_path / 'val'} lacks 7 of 12 training classes: c00, c01, c02, c03, c04, ..."]
    shutil.move(tmp_path / "train", tmp_path / "rest")
    write_tree(tmp_path, train=names[:2], val=names[2:], count=1)
    with pytest.raises(ValueError) as error:
        folders.image_folders(tmp_path)
    message = one_line(error)
    assert "10 class(es)" in message and "c02, c03, c04, c05, c06, ..." in message and "c07" not in message
    assert "lacks c00, c01" in message and str(tmp_path / "val") in message and str(tmp_path / "train") in message


def test_a_flat_validation_folder_is_recognised(tmp_path):
    write_tree(tmp_path, val=())
    for i in range(3):
        save(tmp_path / "val" / f"ILSVRC2012_val_{i:08}.JPEG")
    with pytest.raises(ValueError) as error:
        load("folder", str(tmp_path))
    message = one_line(error)
    assert all(word in message for word in ("flat", "ImageNet", "3 images", f"move each image to {tmp_path}/val/CLASS"))


def test_the_flat_validation_folder_of_tiny_imagenet_is_recognised(tmp_path):
    write_tree(tmp_path, val=())
    save(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tant\t0\t32\t44\t62\n")
    for read in (lambda: load("folder", str(tmp_path)),
                 lambda: imagenet.loaders(str(tmp_path), 32, 4, 0, 0, "cpu")):
        with pytest.raises(ValueError) as error:
            read()
        message = one_line(error)
        assert all(word in message for word in ("flat", "Tiny-ImageNet", "val_annotations.txt", "move", "CLASS"))
    (tmp_path / "val" / "ant").mkdir()  # once it is sorted, the list and an empty folder may stay behind
    (tmp_path / "val" / "images" / "val_0.JPEG").rename(tmp_path / "val" / "ant" / "val_0.JPEG")
    (tmp_path / "val" / "images").rmdir()
    assert load("folder", str(tmp_path)).test_target.tolist() == [0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_beside_the_class_folders_are_passed_over_and_the_log_says_so(split, tmp_path, lines):
    write_tree(tmp_path)
    save(tmp_path / split / "left.png")
    assert len(load("folder", str(tmp_path), 8).train_images) == 6
    line, = [line for line in lines if "ignored" in line]
    assert line.startswith(f"{tmp_path / split}: 3 classes, 6 images") and line.endswith(
        f"ignored: 1 image(s) outside the class folders, to be moved to {tmp_path / split}/CLASS/")


@pytest.mark.parametrize("place", ["train", "val/bee", "train/ant/deep"])
def test_a_folder_that_cannot_be_read_is_refused_and_not_passed_over(place, tmp_path, monkeypatch):
    write_tree(tmp_path)
    save(tmp_path / "train" / "ant" / "deep" / "0.png")
    scandir = os.scandir

    def refuse(path):  # the tests may run as root, whom nothing stops
        if str(path) == str(tmp_path / place):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError) as error:
        folders.image_folders(tmp_path)
    message = one_line(error)
    assert message.startswith(f"cannot read the folder {tmp_path / place} (Permission denied): make it readable")


def test_a_class_without_images_is_told_how_their_names_end(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "train" / "bee" / "0.png").rename(tmp_path / "train" / "bee" / "0.gif")
    (tmp_path / "train" / "bee" / "1.png").rename(tmp_path / "train" / "bee" / "1.gif")
    with pytest.raises(ValueError) as error:
        folders.image_folders(tmp_path)
    assert ".jpg .jpeg .png" in one_line(error) and "1 class(es): bee" in one_line(error)
    assert one_line(error).endswith("; ignored: 2 .gif")


# ---- what a scan passes over, and says

def scan(root, lines=None):
    """The paths below `root` that are training images, by class, and what the log says of them."""
    train, _ = folders.image_folders(root)
    found = [(os.path.relpath(path, root / "train"), train.classes[label]) for path, label in train.samples]
    return found, (lines or [""])[0].partition("; ignored: ")[2]


def loop(root, how):
    """Add a link to a tree that leads to images a second time."""
    place, target = {
        "up": ("train/ant/loop", ".."), "itself": ("train/ant/loop", "."), "root": ("train/ant/loop", "../.."),
        "absolute": ("train/bee/deep/loop", root.resolve()), "another class": ("train/ant/more", "../bee"),
        "both ways": ("train/ant/more", "../bee"), "below another class": ("train/ant/more", "../bee/deep")}[how]
    save(root / "train/bee/deep/2.png")
    (root / place).symlink_to(target)
    if how == "both ways":
        (root / "train/bee/more").symlink_to("../ant")


@pytest.mark.parametrize("how", ["up", "itself", "root", "absolute", "another class", "both ways",
                                 "below another class"])
def test_a_folder_is_visited_once_and_a_loop_of_links_ends(how, tmp_path, lines):
    write_tree(tmp_path)
    loop(tmp_path, how)
    found, ignored = scan(tmp_path, lines)
    assert found == [("ant/0.png", "ant"), ("ant/1.png", "ant"), ("bee/0.png", "bee"), ("bee/1.png", "bee"),
                     ("bee/deep/2.png", "bee"), ("cow/0.png", "cow"), ("cow/1.png", "cow")]
    assert ignored == f"{1 + (how == 'both ways')} link(s) to a folder that is read anyway"


def test_a_link_to_images_elsewhere_is_followed_wherever_the_tree_is(tmp_path):
    write_tree(tmp_path / "far")
    (tmp_path / "near/train").mkdir(parents=True)
    (tmp_path / "near/val").symlink_to("../far/val")
    for name in ("ant", "bee"):
        (tmp_path / "near/train" / name).symlink_to(f"../../far/train/{name}")
    save(tmp_path / "near/train/cow/0.png")
    (tmp_path / "near/train/cow/more").symlink_to("../../../far/train/cow")
    found, _ = scan(tmp_path / "near")
    assert [path for path, _ in found] == ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png", "cow/0.png",
                                           "cow/more/0.png", "cow/more/1.png"]


@pytest.mark.parametrize("name, kind", [
    ("a.heic", ".heic"), ("a.jfif", ".jfif"), ("a.JPG.bak", ".bak"), ("IMG_0001", "without a suffix"),
    ("a.GIF", ".gif"), ("a.png~", ".png~"), ("a.mp4", ".mp4"), (".a.png", "hidden or left by the system"),
    ("Thumbs.db", "hidden or left by the system")])
def test_other_files_are_counted_by_suffix(name, kind, tmp_path, lines):
    write_tree(tmp_path)
    (tmp_path / "train/bee" / name).write_bytes(b"")
    (tmp_path / "train/bee/deep").mkdir()
    (tmp_path / "train/bee/deep" / name).write_bytes(b"")
    found, ignored = scan(tmp_path, lines)
    assert len(found) == 6 and ignored == f"2 {kind}"
    assert lines[0].startswith(f"{tmp_path / 'train'}: 3 classes, 6 images, from 2 (ant) to 2 (cow) per class;")


def test_the_log_names_the_smallest_and_the_largest_class_and_all_that_was_ignored(tmp_path, lines):
    write_tree(tmp_path)
    save(tmp_path / "train/cow/2.png")
    (tmp_path / "train/ant/1.png").rename(tmp_path / "train/ant/1.heic")
    (tmp_path / "train/ant/2.heic").write_bytes(b"")
    (tmp_path / "train/ant/3.png").symlink_to("none.png")
    (tmp_path / "train/readme.txt").write_text("")
    assert scan(tmp_path, lines)[1] == "2 .heic, 1 .txt, 1 dangling link(s)"
    assert lines == [f"{tmp_path / 'train'}: 3 classes, 6 images, from 1 (ant) to 3 (cow) per class; ignored: 2 .heic, "
                     "1 .txt, 1 dangling link(s)", f"{tmp_path / 'val'}: 3 classes, 6 images, from 2 (ant) to 2 (cow) "
                     "per class"]


@pytest.mark.parametrize("target", ["none", "../train/none", "bee"])
def test_a_dangling_link_to_a_class_is_refused(target, tmp_path, lines):
    write_tree(tmp_path)
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / split / "bee")
        (tmp_path / split / "bee").symlink_to(target)  # "bee": to itself
    with pytest.raises(ValueError) as error:
        folders.image_folders(tmp_path)
    assert "no images" in one_line(error) and "of 1 class(es): bee" in one_line(error)
    assert one_line(error).endswith("; ignored: 1 dangling link(s)") and lines == []


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "link to a pipe", "link to itself"])
def test_what_is_no_regular_file_is_no_image(kind, tmp_path, lines, monkeypatch):
    write_tree(tmp_path)
    path = tmp_path / "train/bee/2.png"
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        monkeypatch.chdir(path.parent)  # a socket's path must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    elif kind == "link to itself":
        path.symlink_to(path.name)
    else:
        os.mkfifo(tmp_path / "pipe" if "link" in kind else path)
        if "link" in kind:
            path.symlink_to(tmp_path / "pipe")
    found, ignored = scan(tmp_path, lines)
    assert len(found) == 6
    assert ignored == ("1 dangling link(s)" if kind == "link to itself" else "1 pipe(s), socket(s) or device(s)")


@pytest.mark.parametrize("names, words", [
    (("ant",), "only one class folder, ant, which is perhaps the wrong level"),
    (("images/ant", "images/bee"), "put the folder of each class directly into ROOT/train, such as ant, bee"),
    (("x/" + name for name in "abcdefg"), "such as a, b, c, d, e, ...")])
def test_one_class_is_refused_as_the_wrong_level(names, words, tmp_path):
    write_tree(tmp_path)
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / split)
    write_tree(tmp_path, train=list(names))
    for read in (lambda: load("folder", str(tmp_path)), lambda: imagenet.loaders(str(tmp_path), 32, 4, 0, 0, "cpu")):
        with pytest.raises(ValueError) as error:
            read()
        assert words.replace("ROOT", str(tmp_path)) in one_line(error)


# ---- one image as a square

@pytest.mark.parametrize("resize, crop", [(8, 8), (36, 32), (257, 224)])
def test_a_square_is_torchvisions(resize, crop):
    random = np.random.default_rng(0)
    plain = v2.Compose([v2.Resize(resize), v2.CenterCrop(crop), v2.PILToTensor()])
    for width, height in [(8, 8), (1, 1), (1, 100), (300, 4), *random.integers(2, 90, (40, 2)).tolist()]:
        image = Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8))
        assert torch.equal(folders.square(image, resize, crop), plain(image)), (width, height)


def test_a_square_larger_than_the_image_is_padded_with_zeros_as_fashion_mnist_is():
    pixels = torch.randint(1, 256, (28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    image = Image.fromarray(pixels.numpy()).convert("RGB")
    assert torch.equal(folders.square(image, 28, 32), F.pad(pixels, (2, 2, 2, 2)).expand(3, 32, 32))


@pytest.mark.parametrize("size", [(1, 1_000_000), (20_000, 1), (30_000, 2), (3, 5_000)])
def test_a_very_long_image_is_read_in_little_memory(size, tmp_path, monkeypatch):
    """It is red but for a green pixel at each end: its centre is red. The resized image has 256 x 25,600 pixels."""
    image = Image.new("RGB", size, "red")
    for corner in ((0, 0), (size[0] - 1, size[1] - 1)):
        image.putpixel(corner, (0, 255, 0))
    image.save(tmp_path / "a.png")
    resize = Image.Image.resize

    def bounded(image, sides, *args, **options):
        assert sides[0] * sides[1] <= 100 * 256 ** 2
        return resize(image, sides, *args, **options)
    monkeypatch.setattr(Image.Image, "resize", bounded)
    write_tree(tmp_path / "tree")
    shutil.copy(tmp_path / "a.png", tmp_path / "tree/train/ant/0.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "tree/val/ant/0.png")
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
    assert torch.equal(load("folder", str(tmp_path / "tree"), 8).test_images[0], red.expand(3, 8, 8))
    train, val, _ = imagenet.loaders(str(tmp_path / "tree"), 224, 2, 0, 0, "cpu")
    assert torch.equal(val.dataset[0][0], red.expand(3, 224, 224)) and train.dataset[0, 0][0].shape == (3, 224, 224)


# ---- whole folders

READABLE = [("a", "cmyk.jpg"), ("a", "la.png"), ("a", "rgba.png"), ("b", "gray16.png"),
            ("b", "palette_transparent.png")]  # in the order of a folder


def write_cases(root):
    """The readable cases as two classes of training and of validation images: 3 of 5 are transparent."""
    for split in ("train", "val"):
        for name, case in READABLE:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(CASES / case, root / split / name)
    return root


def test_a_folder_is_read_as_the_images_one_by_one_and_the_log_counts_the_transparent_ones(tmp_path, lines):
    got = load("folder", str(write_cases(tmp_path)), 8)
    for image, target, (name, case) in zip(got.test_images, got.test_target, READABLE):
        assert np.array_equal(image.permute(1, 2, 0), pixels(CASES / case)) and target == (name == "b")
    assert lines[2:] == ["6 of 10 images had transparency: composited on white"]


def test_the_log_says_what_a_folder_without_anything_else_holds(tmp_path, lines):
    load("folder", str(write_tree(tmp_path)), 8)
    assert lines == [f"{tmp_path / split}: 3 classes, 6 images, from 2 (ant) to 2 (cow) per class"
                     for split in ("train", "val")]


@pytest.mark.parametrize("workers", [0, 2])
def test_imagenet_reads_the_same_and_says_once_how_many_are_transparent(workers, tmp_path, lines):
    write_cases(tmp_path)
    train, val, _ = imagenet.loaders(str(tmp_path), 32, 2, workers, 0, "cpu")
    for epoch in range(2):
        imagenet.set_epoch(train, epoch)
        assert sum(len(target) for _, target in train) == 4  # the fifth alone is left out
        assert sum(len(target) for _, target in val) == 5
    of_train, of_val = lines[2:]
    assert of_val == "3 of the 5 images read had transparency: composited on white"
    assert of_train in (f"{n} of the 4 images read had transparency: composited on white" for n in (2, 3))
    image, label, transparent = val.dataset[3]  # the 16-bit ramp, enlarged to 36x36 and cut to 32x32
    assert (label, transparent) == (1, False) and 0 <= image.min() < 30 and 225 < image.max() <= 255


@pytest.mark.parametrize("case, word", [("float.tif", "floating-point"), ("truncated.jpg", "truncated")])
def test_folder_and_imagenet_say_why_an_image_cannot_be_read(case, word, tmp_path):
    write_tree(tmp_path)
    shutil.copy(CASES / case, tmp_path / "val" / "bee")
    path = tmp_path / "val" / "bee" / case
    with pytest.raises(folders.ImageError) as error:
        load("folder", str(tmp_path), 8)
    assert one_line(error).startswith(f"cannot read image {path}: {word}")
    with pytest.raises(folders.ImageError) as error:
        list(imagenet.loaders(str(tmp_path), 32, 4, 0, 0, "cpu")[1])
    assert one_line(error).startswith(f"cannot read image {path}: {word}")


def test_all_cores_read(tmp_path, monkeypatch):
    write_tree(tmp_path)
    meeting, read = threading.Barrier(3, timeout=60), folders.read_image

    def read_together(path):
        meeting.wait()  # for two others who read at the same time
        return read(path)
    monkeypatch.setattr(folders, "_cores", lambda: 3)
    monkeypatch.setattr(folders, "read_image", read_together)
    assert load("folder", str(tmp_path), 8).train_target.bincount().tolist() == [2, 2, 2]


def test_the_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert folders._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert folders._cores() == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_how_far_the_reading_is_on_a_terminal_only(terminal, tmp_path, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    load("folder", str(write_tree(tmp_path)), 8)
    assert ("reading training images" in screen.getvalue() and "/6" in screen.getvalue()) == terminal
    assert terminal or not screen.getvalue()


def test_images_that_need_more_memory_than_there_is_are_refused_before_they_are_read(tmp_path, monkeypatch):
    write_tree(tmp_path)  # 6 + 6 images of 3 * 100 * 100 bytes, and 4/3 of the first 6 for their statistics
    needed = 12 * 30_000 + 8 * 30_000
    monkeypatch.setattr(utils, "free_memory", lambda: needed - 1)
    monkeypatch.setattr(folders, "read_image", None)
    with pytest.raises(ValueError) as error:
        load("folder", str(tmp_path), 100)
    message = one_line(error)
    assert "--image_size" in message and "100x100" in message and "GiB" in message
    monkeypatch.undo()
    for free in (needed, None):
        monkeypatch.setattr(utils, "free_memory", lambda: free)  # noqa: B023
        assert load("folder", str(tmp_path), 100).train_images.shape == (6, 3, 100, 100)


# ---- names of other systems

def write_class(folder, name):
    (folder / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / name / "0.png")


@pytest.mark.parametrize("train, val", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_class_names_that_macos_has_decomposed_are_the_same_names(train, val, tmp_path):
    names = ["zebra", "éclair", "Ångström", "한국", "a"]
    for split, form in (("train", train), ("val", val)):
        for name in names:
            write_class(tmp_path / split, unicodedata.normalize(form, name))
    folders_ = folders.image_folders(tmp_path)
    assert folders_[0].classes == folders_[1].classes == sorted(names)
    assert [label for _, label in folders_[1].samples] == list(range(5))


def test_a_class_in_both_forms_is_refused(tmp_path):
    for form in ("NFC", "NFD"):
        write_class(tmp_path / "train", unicodedata.normalize(form, "é"))
    write_class(tmp_path / "val", "é")
    with pytest.raises(ValueError, match="1 class.es. twice"):
        folders.image_folders(tmp_path)
