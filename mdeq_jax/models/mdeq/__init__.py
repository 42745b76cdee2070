"""Multiscale deep equilibrium models: cell, network, heads, and their rows among the families."""
