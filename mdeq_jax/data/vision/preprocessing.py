"""What a classifier of images was trained to expect, and what its classes are called."""

import dataclasses
import json
import unicodedata
from pathlib import Path
from typing import Any

FILE = "preprocessing.json"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network, and the names of its classes.

    Attributes:
        class_names: in the order of the labels.
        image_size: height and width.
        mean: RGB, subtracted from pixels in [0, 1].
        std: RGB, divides pixels in [0, 1].
        crop_fraction: of the shorter side: it is resized to size / crop_fraction, and the middle is
            cut out.
    """

    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_fraction: float

    def save(self, workdir: str | Path) -> None:
        """Writes `workdir/preprocessing.json`."""
        Path(workdir, FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def check(self, workdir: str | Path) -> None:
        """Refuses a work directory whose classes have other names, or another order.

        Raises:
            ValueError: names the first difference.
        """
        saved = load_preprocessing(workdir)
        if saved is None or _composed(saved.class_names) == _composed(self.class_names):
            return
        pairs = zip(_composed(saved.class_names), _composed(self.class_names))
        numbered = ((i, *pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        difference = next(numbered, None)
        if difference is None:
            differs = f"it has {len(saved.class_names)}, these data have {len(self.class_names)}"
        else:
            number, there, here = difference
            differs = f"class {number} is {there!r} there, {here!r} in these data"
        raise ValueError(
            f"{Path(workdir, FILE)} lists the classes that the network was trained on: {differs}. "
            "Its labels are numbers in that order. Use those data, or another --workdir; if both "
            "mean the same, correct the names in the file."
        )


def _composed(names: tuple[str, ...]) -> list[str]:
    """Names in composed Unicode; file systems differ in the form that they keep."""
    return [unicodedata.normalize("NFC", name) for name in names]


def load_preprocessing(workdir: str | Path) -> Preprocessing | None:
    """What `Preprocessing.save` wrote; None if there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(workdir, FILE)
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text())
        values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return Preprocessing(**values)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): copy it again from the run that the weights are from."
        ) from None
