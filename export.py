"""Exports a model for other programs: `python export.py --config=... --output=FOLDER`."""

from mdeq_jax.export import run

if __name__ == "__main__":
    run()
