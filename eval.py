"""Evaluates a checkpoint: `python eval.py --config=configs/digits.py`."""

from mdeq_jax.eval import run

if __name__ == "__main__":
    run()
