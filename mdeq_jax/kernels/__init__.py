"""Pallas kernels for GPUs, and their launching."""
