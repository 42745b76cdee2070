"""What makes the documentation site: its generated pages, its figures and a check of its style."""
