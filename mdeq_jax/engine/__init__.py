"""Training and evaluation: state, step, loop, checkpoints, work directories."""
