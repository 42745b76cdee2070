"""Numbers that describe how good a model is."""

import math
from typing import NamedTuple


class Metric(NamedTuple):
    """A number that describes how good a model is, and how to print it.

    Attributes:
        name: key in the metrics, as in "eval/NAME".
        higher_is_better: whether a larger value is a better one.
        format: format specification of the printed number, e.g. ".2f".
        scale: factor of the printed number, e.g. 100 for a share in per cent.
        unit: printed after the number; empty for none.
        label: printed before the number; empty: the name with spaces for underscores.
    """

    name: str
    higher_is_better: bool
    format: str = ".4f"
    scale: float = 1.0
    unit: str = ""
    label: str = ""

    @property
    def display_name(self) -> str:
        """The name as people write it."""
        return self.label or self.name.replace("_", " ")

    @property
    def axis_name(self) -> str:
        """The name with its unit, for an axis of a figure."""
        return f"{self.display_name} ({self.unit})" if self.unit else self.display_name

    def describe(self, value: float) -> str:
        """Name, number and unit, e.g. "accuracy 99.44 %"."""
        text = f"{self.display_name} {self.scale * value:{self.format}}"
        return f"{text} {self.unit}" if self.unit else text

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than `best`; None: than nothing. NaN never is."""
        if best is None:
            return not math.isnan(value)
        return value > best if self.higher_is_better else value < best


def percent(name: str, label: str = "") -> Metric:
    """A metric in [0, 1] that is printed in per cent; higher is better."""
    return Metric(name, higher_is_better=True, format=".2f", scale=100.0, unit="%", label=label)
