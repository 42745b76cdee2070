"""Trains a model: `python train.py --config=configs/digits.py`."""

from mdeq_jax.train import run

if __name__ == "__main__":
    run()
