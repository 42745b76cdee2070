"""Converts weights of the original PyTorch repositories, and back."""

from mdeq_jax.convert_torch_weights import run

if __name__ == "__main__":
    run()
