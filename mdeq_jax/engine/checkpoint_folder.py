"""The folders of checkpoints in a work directory: `checkpoints/STEP` and `best/STEP`."""

import shutil
import time
from pathlib import Path

NEWEST, BEST = "checkpoints", "best"


def saved_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def remove_unfinished(folder: Path) -> None:
    """Removes the remains of interrupted saves from the folder.

    Orbax can do it too, but its next save fails if the folder fills up again meanwhile: by a write
    that was still under way, or on a network file system that keeps open files.
    """
    for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
        for _ in range(20):
            shutil.rmtree(unfinished, ignore_errors=True)
            if not unfinished.exists():
                break
            time.sleep(0.1)
