"""Pallas kernels for GPUs, and their launching.

The reference form of each is where it is used: `layers.group_norm` and `solvers.broyden`.
"""
