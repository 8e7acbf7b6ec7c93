"""What keeps an experiment alive: command lines, processes, run directories, checkpoints, weights, the log.

It knows nothing of images, of cells, or of how a network is built. The modules that a program needs before it computes
anything (cli, launchers, log, files, records) do not import torch, so that --help and the tables start quickly.
"""
