"""What differs on a GPU."""
