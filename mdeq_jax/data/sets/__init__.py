"""The data sets, one per file. Each file has `load(config.data) -> Dataset`."""
