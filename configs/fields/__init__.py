"""Parts of `configs/default.py`."""
