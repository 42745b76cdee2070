"""RepMLP's and RepMLPNet's names in PyTorch."""
