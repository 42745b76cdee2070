"""Which text each slot works on, step by step."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

IDLE = -1  # of a slot without a text


class Place(NamedTuple):
    """Where a text is made.

    Attributes:
        slot: its slot.
        first: its first step.
        stop: the step after its last one.
    """

    slot: int
    first: int
    stop: int


class Plan(NamedTuple):
    """All steps of all slots.

    Attributes:
        places: of each text.
        text: `[steps, S]` int32, the text that a slot works on, or `IDLE`.
        number: `[steps, S]` int32, which of its steps this is, from 0, or `IDLE`.
    """

    places: list[Place]
    text: np.ndarray
    number: np.ndarray


def plan_slots(lengths: Sequence[int], slots: int) -> Plan:
    """Gives each text, in order, the slot that is free first.

    Args:
        lengths: steps that each text takes.
        slots: S.
    """
    free, places = [(0, slot) for slot in range(slots)], []
    for length in lengths:
        first, slot = heapq.heappop(free)
        places.append(Place(slot, first, first + length))
        heapq.heappush(free, (first + length, slot))
    shape = max(place.stop for place in places), slots
    text, number = np.full(shape, IDLE, np.int32), np.full(shape, IDLE, np.int32)
    for index, place in enumerate(places):
        text[place.first : place.stop, place.slot] = index
        number[place.first : place.stop, place.slot] = np.arange(place.stop - place.first)
    return Plan(places, text, number)
