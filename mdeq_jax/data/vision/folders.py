"""The images of a folder, and a count of the files that are not taken."""

import os
import pathlib
from collections import Counter
from typing import NamedTuple

from absl import logging

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")


class Found(NamedTuple):
    """The files of a folder.

    Attributes:
        images: the JPEG and PNG files, sorted.
        left_out: why the other files are not taken -> how many.
    """

    images: list[pathlib.Path]
    left_out: Counter[str]


def is_hidden(name: str) -> bool:
    """Whether a name is of the operating system's or a tool's files (`._0.jpg`, `__MACOSX`)."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(folder: pathlib.Path, *, recursive: bool) -> Found:
    """Finds the images of a folder by their suffix, whose case does not matter.

    Links are followed, as in torchvision, but not to a folder that holds the link.

    Args:
        folder: where to look.
        recursive: whether to take the images of subfolders. Otherwise, they are counted.
    """
    images, left_out = [], Counter()

    def visit(path: pathlib.Path, reason: str, above: frozenset[str]) -> None:
        above |= {os.path.realpath(path)}
        for entry in path.iterdir():
            hidden = "hidden" if is_hidden(entry.name) else ""
            if not entry.is_dir():
                unread = "" if entry.suffix.lower() in IMAGE_SUFFIXES else _kind(entry)
                if why := reason or hidden or unread:
                    left_out[why] += 1
                else:
                    images.append(entry)
            elif os.path.realpath(entry) in above:
                left_out["links to a folder that holds them"] += 1
            else:
                visit(entry, reason or hidden or ("" if recursive else "in subfolders"), above)

    visit(folder, "", frozenset())
    return Found(sorted(images), left_out)


def _kind(path: pathlib.Path) -> str:
    return path.suffix.lower() or "without a suffix"


def describe_left_out(left_out: Counter[str]) -> str:
    """The counts as text, e.g. "3 .bmp, 1 hidden"."""
    return ", ".join(f"{count:,} {why}" for why, count in sorted(left_out.items()))


def report_left_out(name: str, left_out: Counter[str]) -> None:
    """Logs one line if there are files that are not taken."""
    if left_out:
        logging.warning(
            "%s: left out %s file(s): %s. Only JPEG and PNG files where the data set has them are "
            "read: convert, move or remove the others.",
            name,
            f"{left_out.total():,}",
            describe_left_out(left_out),
        )
