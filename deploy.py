"""Merges a trained network for inference: `python deploy.py --config=configs/repmlp_digits.py`."""

from mdeq_jax.deploy import run

if __name__ == "__main__":
    run()
