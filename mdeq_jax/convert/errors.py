"""The one error of this room."""


class WeightsFileError(ValueError):
    """A weights file cannot be used: damaged, refused as unsafe, or of another network.

    The message names the file or the entry at fault, what was required and what to do.
    """
