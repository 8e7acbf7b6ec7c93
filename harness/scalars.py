"""An epoch's record for TensorBoard."""
from pathlib import Path

from harness.files import replace_link
from harness.process import at_end


def scalar_writer(run_dir: Path, done: int):
    """A function that writes the record of an epoch, by its number; `done` epochs have been written already."""
    from torch.utils.tensorboard import SummaryWriter
    replace_link(run_dir / "tensorboard")
    writer = SummaryWriter(run_dir / "tensorboard", purge_step=done)
    at_end(writer.close)

    def write(epoch: int, record: dict) -> None:
        for name, value in record.items():
            if value is not None:
                writer.add_scalar(name, value, epoch)
        writer.flush()
    return write
