"""The one error of this room, and how it shows what a file says."""

import reprlib


class WeightsFileError(ValueError):
    """A weights file cannot be used: damaged, refused as unsafe, or of another network.

    The message names the file or the entry at fault, what was required and what to do.
    """


def printable(name: str) -> str:
    """A name from a file, shortened and escaped if it is not fit for a terminal as it is."""
    return name if name.isprintable() and len(name) < 200 else reprlib.repr(name)
