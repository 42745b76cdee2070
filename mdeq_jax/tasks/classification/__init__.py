"""Classification of images: task, losses, prediction."""
