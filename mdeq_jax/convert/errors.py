"""The error of this package, and names from a file in its messages."""

import reprlib


class WeightsFileError(ValueError):
    """A weights file is damaged, refused as unsafe, or of another network.

    The message names the file or the entry, the requirement and a remedy.
    """


def printable(name: str) -> str:
    """Returns a name from a file, shortened and escaped if a terminal could not show it."""
    return name if name.isprintable() and len(name) < 200 else reprlib.repr(name)
