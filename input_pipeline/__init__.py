"""From files to batches on the device: datasets by name, folders of images, batches in memory and streamed ones.

It is independent of networks. Functions import torchvision only when needed, since that loads all of its models.
"""
from input_pipeline.sets import DataSet, load

__all__ = ["DataSet", "load"]
