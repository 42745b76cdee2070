"""Configs: each file has `get_config()`; `default.py` declares every field."""
