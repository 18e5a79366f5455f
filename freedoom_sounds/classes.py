"""The classes of Freedoom-Sounds, what sets the difficulty, the list of a set's clips, and the errors.

What makes the set easy or hard to learn is in the constants here (what one sees) and at the top of `sound`
(what one hears). Lengths are map units, angles degrees counter-clockwise.
"""

import csv
import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

NAME = "freedoom-sounds"
GAME = "freedoom2"
SPLITS = ("train", "val", "test")


class GenerationError(RuntimeError):
    """A clip could not be made; the text names its class and seed."""


class EngineError(RuntimeError):
    """The engine is not usable: not installed, without sound, or ended unexpectedly."""


class Failed(Exception):  # noqa: N818 (an outcome that is counted, no error)
    """One try of a clip did not come out as planned; the text is the reason that is counted."""


class EventClass(NamedTuple):
    """A row of classes.csv.

    kind: a key of KINDS. script: a key of scripts.PLANNERS. what: its weapon, actor or direction. sound: out of
    view, as (the engine's sound, tics between repetitions, repetitions). Of the kind told_by_both two classes at a time
    are a pair: one event of `script` (several) is seen and one is heard, by `what` the same, another, or the same
    apart in time. What is seen, what is heard and when have, each by itself, the same distribution in both of them.
    """

    kind: str
    script: str
    what: str
    sound: tuple[str, int, int] | None = None


_, *_ROWS = csv.reader(Path(__file__).with_suffix(".csv").read_text(encoding="ascii").splitlines())
ROWS = {
    label: EventClass(kind, script, what, (sound, int(period), int(times)) if sound else None)
    for label, kind, script, what, sound, period, times in _ROWS
}
PAIRS = {label: row for label, row in ROWS.items() if row.kind == "told_by_both"}
CLASSES = {label: row for label, row in ROWS.items() if label not in PAIRS}
# In the second list an event of the other classes is seen or heard, never both: else it would be one of a pair, too.
CLASS_LISTS = {NAME: tuple(CLASSES), f"{NAME}-2": tuple(ROWS)}
SEEN = 0.5  # probability that it is seen


class Kind(NamedTuple):
    """visible, audible: probabilities (an event that is not seen is always heard). snr: range in dB."""

    visible: float
    audible: float
    snr: tuple[float, float]


KINDS = {
    "seen_and_heard": Kind(visible=0.85, audible=0.80, snr=(-12.0, 10.0)),
    "mostly_seen": Kind(visible=1.0, audible=0.0, snr=(-12.0, 10.0)),
    "mostly_heard": Kind(visible=0.60, audible=0.85, snr=(-12.0, 10.0)),
    "told_by_both": Kind(visible=1.0, audible=1.0, snr=(0.0, 12.0)),
}
DECOY = 0.15  # probability of one or two dormant monsters, barrels or items in view
AT_DOOR = 0.05  # probability of standing before a closed door in the other classes
SWAY = 0.40  # probability of a moving camera in classes that are no motion
STEP = 0.25  # probability of a short step in them
TURN_DEGREES = (55.0, 110.0)
WALK_UNITS = (180.0, 420.0)
MONSTER_DISTANCE = (80, 176)
MIN_PIXELS = 150  # of 160 x 120: what is smaller on screen does not count as seen


class ClipSpec(NamedTuple):
    """One clip to make. seed: of everything in it. class_list: a key of CLASS_LISTS."""

    clip_id: str
    label: str
    split: str
    seed: int
    class_list: str = NAME

    def __str__(self) -> str:
        return f"class {self.label}, clip {self.clip_id}, seed {self.seed}"


def clip_specs(seed: int, clips_per_class: dict[str, int], class_list: str = NAME) -> list[ClipSpec]:
    """All clips of a set: every class the same number of times in each split of `clips_per_class`.

    Raises ValueError if the list or a split is unknown, a number negative, or no clip is asked for.
    """
    if class_list not in CLASS_LISTS:
        raise ValueError(f"class_list: {class_list!r}: use one of {list(CLASS_LISTS)}")
    specs = []
    for split, count in clips_per_class.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"clips_per_class: {split}: {count}: give one of {SPLITS} and a count from 0 up")
        for label, index in itertools.product(CLASS_LISTS[class_list], range(count)):
            digest = hashlib.sha256(f"{seed}/{split}/{label}/{index}".encode()).digest()
            own_seed = int.from_bytes(digest[:7], "big")
            specs.append(ClipSpec(f"{split}-{label}-{index:04d}", label, split, own_seed, class_list))
    if not specs:
        raise ValueError("clips_per_class: no clip is asked for; give a split and a count")
    return specs


def split_levels(split: str) -> list[str]:
    """Levels of a split; no two splits share one."""
    home = {number: "test" if number % 4 == 0 else "val" if number % 8 == 1 else "train" for number in range(1, 33)}
    return [f"map{number:02d}" for number in home if home[number] == split]
