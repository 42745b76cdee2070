"""Images and label maps: files, decoding, transforms, splits of examples."""
