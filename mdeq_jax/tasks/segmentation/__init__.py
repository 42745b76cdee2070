"""Semantic segmentation: task, losses, inference on whole images, prediction, pictures."""
