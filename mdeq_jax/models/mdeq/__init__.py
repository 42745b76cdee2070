"""Multiscale deep equilibrium models: cell, network, heads, and `build_model`."""
