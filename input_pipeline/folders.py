"""Image files: reading one, finding them in folders of classes, and reading whole folders into memory."""
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

import utils
from harness.log import log

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
# Files that file managers and archivers leave behind, besides those whose names begin with a dot.
LEFTOVERS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
# Pillow also warns where it raises an error, and of large images or odd metadata, which are harmless here.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(ValueError):
    """An image that cannot be read; prints as one line, even if a data-loading worker has prepended its traceback."""

    def __str__(self):
        return str(self.args[0]).split("ImageError: ")[-1].strip()


# ---- one image

def read_image(path: str) -> tuple[Image.Image, bool]:
    """An image file as 8-bit RGB, and whether it had transparency, which is composited on white.

    16-bit grey is scaled, v / 257 rounded; a rotation in the EXIF data is ignored, as torchvision does. Raises
    ImageError with the cause: truncated, no permission, too large, pixels of 32 bits, ...
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ImageError("floating-point pixels; convert it to 8 or 16 bits, or remove the file")
            sixteen = image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM")
            if image.mode.startswith("I") and not sixteen or "I;12" in str(image.tile):
                raise ImageError("12-bit, signed 16-bit or 32-bit integer pixels; convert it to 8 or 16 bits, or "
                                 "remove the file")
            if sixteen:
                return _scale_to_8_bits(image)
            if image.has_transparency_data:
                return _composite_on_white(image.convert("RGBA"))
            return image.convert("RGB"), False
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, ..., by file format
        raise ImageError(f"cannot read image {path}: {_cause(error)}") from error


def _scale_to_8_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    pixels = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    if "transparency" not in image.info:
        return grey.convert("RGB"), False
    grey.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return _composite_on_white(grey.convert("RGBA"))


def _composite_on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    if image.getchannel("A").getextrema()[0] == 255:  # it has an alpha channel, but is opaque
        return image.convert("RGB"), False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), True


def _cause(error: Exception) -> str:
    """Why an image can't be read and what to do, in a few words."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, ImageError):
        return text
    if isinstance(error, PermissionError):
        return "no permission; make the file readable, or remove it"
    if isinstance(error, FileNotFoundError):
        return "it no longer exists; restore it, or start a new run without it"
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return f"too large ({text or 'for the memory'}); make it smaller, or remove the file"
    if isinstance(error, UnidentifiedImageError):
        return ("empty, truncated in its first bytes, not an image, or with pixels that Pillow can't read (64 bits, "
                "half precision); replace, convert or remove the file")
    if isinstance(error, EOFError) or any(word in text.lower() for word in ("truncated", "not enough image data")):
        return "truncated; replace or remove the file"
    return f"damaged ({text or type(error).__name__}); replace or remove the file"


# ---- folders of classes

class Folder(NamedTuple):
    path: Path
    samples: list[tuple[str, int]]  # (path, label), class by class
    classes: list[str]  # their names by label


def image_folders(root: Path) -> tuple[Folder, Folder]:
    """The images of train/CLASS/* and val/CLASS/* (or test/CLASS/*), with the labels of the training classes.

    Validation may lack classes, which are logged. Raises OSError or ValueError if there are no folders or no images,
    or if validation has other classes.
    """
    train = _split_folder(root, "train")
    val = _split_folder(root, "val", "test")
    classes, val_classes = _subfolders(train), _subfolders(val)
    missing, unknown = set(classes) - set(val_classes), set(val_classes) - set(classes)
    if unknown:
        also = f" and lacks {_first_five(missing)}" if missing else ""
        raise ValueError(f"{val} has {len(unknown)} class(es) that {train} lacks: {_first_five(unknown)}{also}: make "
                         "the names match, or remove them")
    folders = [Folder(folder, _samples(folder, classes), classes) for folder in (train, val)]
    for folder, names in zip(folders, (classes, val_classes)):
        if empty := set(names) - {classes[label] for _, label in folder.samples}:
            raise ValueError(f"{folder.path} has no images ({' '.join(IMG_EXTENSIONS)}) of {len(empty)} class(es): "
                             f"{_first_five(empty)}: add some, or remove them")
    if missing:
        log.info(f"{val} lacks {len(missing)} of {len(classes)} training classes: {_first_five(missing)}")
    return folders[0], folders[1]


def imagenet_folders(root: str) -> tuple[Folder, Folder]:
    """Training and validation images of ROOT/imagenet or ROOT. Raises as `image_folders`."""
    return image_folders(Path(root, "imagenet") if Path(root, "imagenet/train").is_dir() else Path(root))


def _split_folder(root: Path, *names: str) -> Path:
    """The first of these folders that exists. Raises OSError or ValueError if it holds no class folders."""
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no folder {root / names[0]}: {root} must hold train/CLASS/* and val/CLASS/*")
    classes, flat = _subfolders(folder), sum(_is_image(entry.name) for entry in _entries(folder))
    if (folder / "val_annotations.txt").is_file() and classes in ([], ["images"]):
        raise ValueError(f"{folder} is flat, as in Tiny-ImageNet: move each image to {folder}/CLASS/, its class is "
                         f"in val_annotations.txt")
    if not classes and flat:
        raise ValueError(f"{folder} is flat, {flat} images without class folders, as in ImageNet's validation set: "
                         f"move each image to {folder}/CLASS/")
    if not classes:
        raise FileNotFoundError(f"{folder} has no class folders: put the images into {folder}/CLASS/")
    if flat:  # perhaps sorted in part
        log.info(f"{folder}: {flat} image(s) outside the class folders are ignored; move them to {folder}/CLASS/")
    return folder


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        _reject(error)


def _reject(error: OSError):
    raise OSError(f"cannot read the folder {error.filename} ({error.strerror}): make it readable, or remove "
                  "it") from error


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LEFTOVERS


def _is_image(name: str) -> bool:
    return _is_visible(name) and name.lower().endswith(IMG_EXTENSIONS)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir() and _is_visible(entry.name))


def _samples(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """All images of the classes, below their folders at any depth, in ImageFolder's order."""
    samples = []
    for label, name in enumerate(classes):
        if not os.path.isdir(folder / name):  # validation may lack it
            continue
        found = []
        for parent, folders, files in os.walk(folder / name, onerror=_reject, followlinks=True):
            folders[:] = filter(_is_visible, folders)  # do not enter the others
            found.append((parent, files))
        samples += [(os.path.join(parent, file), label) for parent, files in sorted(found)
                    for file in sorted(files) if _is_image(file)]
    return samples


def _first_five(names) -> str:
    """The names, sorted, up to five of them."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


# ---- whole folders in memory

def read_folder(root: str, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str]]:
    """Training images (N, 3, size, size) uint8 and labels (N,), the same of validation, and the class names.

    Training images are shuffled with a fixed seed. Raises as `image_folders`; ImageError for a bad file; ValueError
    if the images exceed the free memory.
    """
    train, val = image_folders(Path(root))
    # They are listed class by class, which would put different classes into the two splits of a search.
    order = torch.randperm(len(train.samples), generator=torch.Generator().manual_seed(0)).tolist()
    splits = [train.samples[i] for i in order], val.samples
    # Needed besides both sets: a float32 copy of a channel, for the statistics, or the padded copy, for the batches.
    check_memory(3 * size * size * (sum(map(len, splits)) + 4 * len(order) // 3), size)
    parts, transparent = [], 0
    for name, samples in zip(("training", "validation"), splits):
        images, count = _read_all([path for path, _ in samples], size, f"reading {name} images")
        parts += [images, torch.tensor([label for _, label in samples])]
        transparent += count
    if transparent:
        log.info(f"{transparent} of {sum(map(len, splits))} images had transparency: composited on white")
    return *parts, train.classes


def _read_all(paths: list[str], size: int, label: str) -> tuple[Tensor, int]:
    """All images, (N, 3, size, size) uint8, and how many had transparency; shows a progress bar on a terminal."""
    from torchvision.transforms import v2
    to_size = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> bool:
        image, transparent = read_image(paths[i])
        images[i] = to_size(image)
        return transparent

    Image.init()  # loads the plugins of all formats before the threads need them
    count = 0
    # disable=None: a bar only on a terminal. Pillow decodes and resizes without holding the GIL.
    with ThreadPoolExecutor(_cores()) as pool, tqdm(total=len(paths), desc=label, leave=False, disable=None) as bar:
        for start in range(0, len(paths), 1000):  # not a million tasks at once
            for transparent in pool.map(read, range(start, min(start + 1000, len(paths)))):
                count += transparent
                bar.update()
    return images, count


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_memory(needed: int, size: int) -> None:
    """Raise ValueError if `needed` bytes of images exceed the free memory, as far as the system reports it."""
    free = utils.free_memory()
    if free is not None and needed > free:
        raise ValueError(f"the images need {needed / 2 ** 30:.1f} GiB of memory at {size}x{size}, but "
                         f"{free / 2 ** 30:.1f} GiB are free: use a smaller --image_size, or fewer images")
