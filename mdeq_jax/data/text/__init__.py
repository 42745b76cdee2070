"""Text: reading, vocabularies, and streams of tokens that are loaded in order."""
