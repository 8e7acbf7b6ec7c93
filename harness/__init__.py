"""What keeps an experiment alive: command lines, ranks, run directories, checkpoints, weights, the log.

It is independent of images, cells, and how a network is built. The modules that a program needs before it computes
anything (cli, errors, launchers, log, files, process, records) do not import torch, so that --help and the tables
start quickly.
"""
