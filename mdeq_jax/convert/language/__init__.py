"""Names of the sequence models in PyTorch: DEQ-Transformer and DEQ-TrellisNet."""
