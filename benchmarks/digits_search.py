"""Wall-clock time of a whole search on digits, from reading images to drawing figures, against the reference.

    python benchmarks/digits_search.py                     # train_search.py's options and defaults
    python benchmarks/digits_search.py --epochs 5 --warmup_epochs 2
Runs two searches one after the other in one process. The second one trains the reference implementation
(`--fast off`) as a script would first do: on contiguous images, with the gradients of all parameters in both
steps. Everything else is the same, including validation in evaluation mode, figures and report.
"""
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import machine
from search_step import plain_step

import train_search
from architect import Architect
from harness import cli
from model_search import Network


class PlainNetwork(Network):
    def forward(self, images):
        return super().forward(images.contiguous())  # a search's batches are in channels-last memory


def plain_alpha_step(architect, images, target):
    return plain_step(architect.model, architect.alphas, architect.optimizer, images, target)[0]


def plain_weight_step(model, optimizer, images, target, grad_clip, scaler):
    return plain_step(model, optimizer.param_groups[0]["params"], optimizer, images, target)


def time_search(note: str, **options) -> float:
    """Run a search with these options changed -> its wall-clock time in seconds."""
    start = time.perf_counter()
    args = train_search.parse_args()
    vars(args).update(note=note, **options)
    train_search.main(args)
    return time.perf_counter() - start


def main(args) -> None:
    ours = time_search("ours")
    train_search.Network, Architect.step, train_search.weight_step = PlainNetwork, plain_alpha_step, plain_weight_step
    plain = time_search("plain", fast="off")
    print(f"{machine()}: plain {plain:.0f} s, this project {ours:.0f} s, speed-up {plain / ours:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as save:
        sys.argv += ["--save", save]
        cli.run(main, train_search.parse_args)
