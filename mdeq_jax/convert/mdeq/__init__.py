"""MDEQ's names in PyTorch: the table of names, known architectures, variants of files."""
