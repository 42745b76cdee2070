"""PyTorch files, read and written without PyTorch."""
