"""Images per second of the CIFAR training input against torchvision's per-image transforms, on one core, interleaved.

    python benchmarks/image_loading.py
Both crop (padding 4), flip horizontally, normalise and cut out 16x16 squares of 32x32 colour images, in batches of 96.
"""
import statistics
import sys
import time
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import file_to_write, machine, write_json

from harness import cli
from input_pipeline import DataSet
from input_pipeline.batches import Batches
from input_pipeline.sets import CIFAR_STATS

BATCH, CUTOUT, REPEATS = 96, 16, 9


def cutout(image: torch.Tensor) -> torch.Tensor:
    """The published cutout: a square around a uniformly random centre, clipped at the border. (3, H, W)"""
    y, x = torch.randint(32, (2,)).tolist()
    half = CUTOUT // 2
    image[:, max(0, y - half):y + half, max(0, x - half):x + half] = 0
    return image


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--json", type=file_to_write, help="write all numbers to this file")
    return parser


def main(args) -> None:
    from torchvision.transforms import v2  # here, because it loads all models
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mean, std = CIFAR_STATS["cifar10"]
    images, target = torch.randint(256, (9600, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (9600,))
    dataset = DataSet(images, target, images, target, list("0123456789"), mean, std, flip=True)
    batches = Batches(images, target, BATCH, dataset, "cpu", seed=0, cutout=CUTOUT)
    pil_images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[:BATCH]]
    transform = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage(),
                            v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std), cutout])
    rates = {"torchvision": [], "this": []}
    for _ in range(REPEATS):
        # torchvision transforms one batch, image by image.
        start = time.perf_counter()
        torch.stack([transform(image) for image in pil_images])
        rates["torchvision"].append(BATCH / (time.perf_counter() - start))
        # One batch of ours takes about a millisecond, so a whole epoch is timed.
        start = time.perf_counter()
        for _ in batches:
            pass
        rates["this"].append(len(batches) * BATCH / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(rates["this"], rates["torchvision"]))
    print(machine())
    for name, values in rates.items():
        print(f"{name:12} {statistics.median(values):9.0f} images/s (median of {REPEATS})")
    print(f"speed-up     {ratio:9.1f}x")
    write_json(args, {"images_per_second": rates, "ratio": ratio})


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
