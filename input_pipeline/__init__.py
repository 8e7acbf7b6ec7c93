"""From files to batches on the device: datasets by name, folders of images, batches in memory and streamed ones.

It knows nothing of networks. torchvision is imported where it is used, because it brings all of its models along.
"""
from input_pipeline.sets import DataSet, load

__all__ = ["DataSet", "load"]
