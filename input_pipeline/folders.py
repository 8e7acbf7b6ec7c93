"""Image files: reading one, finding them in folders of classes, and reading whole folders into memory."""
import contextlib
import hashlib
import os
import unicodedata
import warnings
from collections import Counter, defaultdict, deque
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
DANGLING = "dangling link(s)"
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


def square(image: Image.Image, resize: int, crop: int) -> Tensor:
    """The centre of an RGB image, (3, crop, crop) uint8, after its shorter side was resized to `resize` pixels.

    Bit-identical to torchvision's Resize and CenterCrop. A larger square than the resized image is zero-padded.
    """
    short = min(image.size)
    # Deviation: of an image more than 100 times longer than wide, the ends are not resized, which bounds the memory.
    image = _cut(image, [min(side, 100 * short) for side in image.size])
    image = image.resize([resize * side // short for side in image.size], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(_cut(image, [crop, crop]))).permute(2, 0, 1)


def _cut(image: Image.Image, sides: list[int]) -> Image.Image:
    left, top = (round((have - want) / 2) for have, want in zip(image.size, sides))
    return image.crop((left, top, left + sides[0], top + sides[1]))


# ---- folders of classes

class Folder(NamedTuple):
    path: Path
    samples: list[tuple[str, int]]  # (path, label), class by class
    classes: list[str]  # their names by label


def image_folders(root: Path) -> tuple[Folder, Folder]:
    """The images of train/CLASS/* and val/CLASS/* (or test/CLASS/*), with the labels of the training classes.

    Logs what each of the two holds and what was ignored in it, and the classes that validation lacks. Raises OSError
    or ValueError if there are no folders or no images, only one class, or if validation has other classes.
    """
    (train, images, _), (val, val_images, _) = scans = _scan(root, "train"), _scan(root, "val", "test")
    classes, missing, unknown = list(images), images.keys() - val_images, val_images.keys() - images
    if unknown:
        also = f" and lacks {first_five(missing)}" if missing else ""
        raise ValueError(f"{val} has {len(unknown)} class(es) that {train} lacks: {first_five(unknown)}{also}: make "
                         "the names match, or remove them")
    for folder, found, ignored in scans:
        if empty := [name for name, paths in found.items() if not paths]:
            raise ValueError(f"{folder} has no images ({' '.join(IMG_EXTENSIONS)}) of {len(empty)} class(es): "
                             f"{first_five(empty)}: add some, or remove them{ignored}")
    if len(classes) == 1:
        inside = first_five([entry.name for entry in _list(_list(train)["folder"][0].path)["folder"]])
        raise ValueError(f"{train} has only one class folder, {classes[0]}, which is perhaps the wrong level: put the "
                         f"folder of each class directly into {train}" + (f", such as {inside}" if inside else ""))
    for folder, found, ignored in scans:
        sizes = sorted((len(paths), name) for name, paths in found.items())
        log.info(f"{folder}: {len(found)} classes, {sum(map(len, found.values()))} images, from "
                 f"{sizes[0][0]} ({sizes[0][1]}) to {sizes[-1][0]} ({sizes[-1][1]}) per class{ignored}")
    if missing:
        log.info(f"{val} lacks {len(missing)} of {len(classes)} training classes: {first_five(missing)}")
    labels = {name: label for label, name in enumerate(classes)}
    return tuple(Folder(path, [(image, labels[name]) for name in found for image in found[name]], classes)
                 for path, found, _ in scans)


def digest_names(*folders: Folder) -> str:
    """SHA-256 of the images' names below these folders, in order."""
    names = "\n".join(path.removeprefix(str(folder.path)) for folder in folders for path, _ in folder.samples)
    return hashlib.sha256(os.fsencode(unicodedata.normalize("NFC", names.replace(os.sep, "/")))).hexdigest()


def _scan(root: Path, *names: str) -> tuple[Path, dict[str, list[str]], str]:
    """The first of these folders that exists, the images of each class in it, and a text on what was ignored.

    Images lie at any depth and are listed in ImageFolder's order. A directory is visited once, so that loops of links
    end, and where it lies rather than where a link to it does. Raises OSError or ValueError if it has no class folders.
    """
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(f"no folder {root / names[0]}: {root} must hold train/CLASS/* and val/CLASS/*")
    top, ignored = _list(folder), Counter()
    _check_level(folder, top)
    if flat := top.pop("image", None):  # perhaps sorted in part
        ignored[f"image(s) outside the class folders, to be moved to {folder}/CLASS/"] = len(flat)
    # A dangling link that may be a class counts as a class, whose images are then missed.
    lost = [entry for entry in top[DANGLING] if not entry.name.lower().endswith(IMG_EXTENSIONS)]
    found = {_class(entry): [] for entry in top["folder"] + lost}  # (folder, its images), of each class
    if twice := len(top["folder"] + lost) - len(found):
        raise ValueError(f"{folder} has {twice} class(es) twice, composed (NFC) and decomposed (NFD) by name: merge "
                         "their folders")
    pending = deque((_class(entry), entry) for entry in sorted(top.pop("folder"), key=os.DirEntry.is_symlink))
    ignored.update({kind: len(entries) for kind, entries in top.items()})
    # What is above it counts as visited, too, by the path that leads there and by where it lies.
    above = [folder.absolute(), *folder.absolute().parents, *Path(os.path.realpath(folder)).parents]
    visited = set(map(os.path.realpath, above))
    while pending:
        name, entry = pending.popleft()
        if (place := os.path.realpath(entry.path)) in visited:
            ignored["link(s) to a folder that is read anyway"] += 1
            continue
        visited.add(place)
        inside = _list(entry.path)
        found[name].append((entry.path, [image.path for image in inside.pop("image", [])]))
        for inner in inside.pop("folder", []):
            (pending.append if inner.is_symlink() else pending.appendleft)((name, inner))
        ignored.update({kind: len(entries) for kind, entries in inside.items()})
    images = {name: [path for _, paths in sorted(found[name]) for path in paths] for name in sorted(found)}
    kinds = ", ".join(f"{count} {kind}" for kind, count in (+ignored).most_common(10))
    return folder, images, f"; ignored: {kinds}" if kinds else ""


def _class(entry: os.DirEntry) -> str:
    """A class's name, composed as it was before a copy by macOS decomposed it."""
    return unicodedata.normalize("NFC", entry.name)


def _check_level(folder: Path, top: dict[str, list[os.DirEntry]]) -> None:
    """Raise OSError or ValueError if a folder with these entries, see `_list`, is not one of class folders."""
    flat, classes = len(top["image"]), [entry.name for entry in top["folder"]]
    if (folder / "val_annotations.txt").is_file() and classes in ([], ["images"]):
        raise ValueError(f"{folder} is flat, as in Tiny-ImageNet: move each image to {folder}/CLASS/, its class is "
                         f"in val_annotations.txt")
    if not classes and flat:
        raise ValueError(f"{folder} is flat, {flat} images without class folders, as in ImageNet's validation set: "
                         f"move each image to {folder}/CLASS/")
    if not classes:
        raise FileNotFoundError(f"{folder} has no class folders: put the images into {folder}/CLASS/")


def _list(folder) -> dict[str, list[os.DirEntry]]:
    """The entries of a folder, sorted by name, by kind: "folder", "image", and what is ignored."""
    kinds = defaultdict(list)
    try:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            kinds[_kind(entry)].append(entry)
    except OSError as error:
        raise OSError(f"cannot read the folder {error.filename} ({error.strerror}): make it readable, or remove "
                      "it") from error
    return kinds


def _kind(entry: os.DirEntry) -> str:
    if entry.name.startswith(".") or entry.name.lower() in LEFTOVERS:
        return "hidden or left by the system"
    with contextlib.suppress(OSError):  # a link to itself
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            suffix = os.path.splitext(entry.name)[1].lower()
            return "image" if suffix in IMG_EXTENSIONS else suffix or "without a suffix"
    return DANGLING if entry.is_symlink() and not os.path.exists(entry.path) else "pipe(s), socket(s) or device(s)"


def first_five(names) -> str:
    """The names, sorted, up to five of them."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


# ---- whole folders in memory

def read_folder(root: str, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor, list[str], str, list[str]]:
    """Training images (N, 3, size, size) uint8 and labels (N,), and of validation, classes, digest, validation's files.

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
    return *parts, train.classes, digest_names(train, val), [path for path, _ in val.samples]


def _read_all(paths: list[str], size: int, label: str) -> tuple[Tensor, int]:
    """All images, (N, 3, size, size) uint8, and how many had transparency; shows a progress bar on a terminal."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> bool:
        image, transparent = read_image(paths[i])
        images[i] = square(image, size, size)
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
