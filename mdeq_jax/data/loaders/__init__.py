"""Loaders: sampling with exact resumption, worker processes, prefetching."""
