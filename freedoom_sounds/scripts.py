"""The scripts of Freedoom-Sounds: where the player stands, what is put there, every tic's input; and their checks.

Lengths are map units, angles degrees counter-clockwise, a tic is 1/35 s.
"""

import itertools
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator

from freedoom_sounds import addon, classes
from freedoom_sounds.classes import CLASSES, EventClass, Failed
from freedoom_sounds.engine import INPUTS, SETTLE_TICS, Engine, Level, Tic
from freedoom_sounds.sound import LOUD, ONSET_TICS, QUIET

TICS = 70  # of a clip
SIGNS = {"forward": 1, "backward": -1, "left": 1, "right": -1}


@dataclass
class Script:
    """What is to happen in one clip: where, with what, and the input of each of its TICS tics."""

    level: str
    hand: str
    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    put: list[str] = field(default_factory=list)  # commands before the clip
    commands: dict[int, list[str]] = field(default_factory=dict)  # at tics of the clip
    watch: str = ""
    onset: int = 0
    inputs: np.recarray = field(default_factory=lambda: np.zeros(TICS, INPUTS).view(np.recarray))


def draw_pair(pair: EventClass, rng: Generator) -> tuple[str, str, int, int]:
    """The event that is seen, the one that is heard, and when each begins, in tics; all uniform, whatever the class."""
    events = [label for label, event in CLASSES.items() if event.script in pair.script.split()]
    first, end = ONSET_TICS
    seen, onset = int(rng.integers(len(events))), int(rng.integers(first, end))
    other = int(rng.integers(1, len(events))) if pair.what == "other" else 0
    apart = (end - first) // 2 if pair.what == "apart" else 0  # around the range, so that no end is preferred
    return events[seen], events[(seen + other) % len(events)], onset, first + (onset - first + apart) % (end - first)


def plan(label: str, visible: bool, level_name: str, level: Level, rng: Generator, onset: int | None = None) -> Script:
    """Draw one clip's script, the onset where none is given.

    Raises Failed where the level has no place for it (another draw may find one).
    """
    event = CLASSES[label]
    script = Script(level_name, hand=str(rng.choice(addon.HANDS)), onset=int(rng.integers(*ONSET_TICS)))
    script.onset = script.onset if onset is None else onset
    if event.script not in ("walk", "turn"):
        _sway(script, rng)
    if not visible:
        _stand(script, level, rng, (0.0, 128.0))
        item = addon.sound_item(label, int(rng.choice(addon.SOUND_ANGLES)), int(rng.choice(addon.SOUND_DISTANCES)))
        script.commands[script.onset] = [f"give {item}"]
    else:
        PLANNERS[event.script](script, event, level, rng)
    if rng.random() < classes.DECOY:
        for _ in range(int(rng.integers(1, 3))):
            distance = int(rng.choice(addon.ACTOR_DISTANCES[2:]))
            decoy, angle = str(rng.choice(addon.DECOYS)), int(rng.choice(addon.ACTOR_ANGLES))
            script.put.append(f"give {addon.actor_item(decoy, angle, distance)}")
    return script


def _stand(script: Script, level: Level, rng: Generator, *needs: tuple[float, float], doors: bool = True) -> None:
    """Choose a place and a direction; needs: (angle relative to it, units that must be free there)."""
    if doors and len(level.doors) and rng.random() < classes.AT_DOOR:
        _before_door(script, level, rng)
        return
    for _ in range(40):
        x, y = level.things[rng.integers(len(level.things))]
        angle = float(rng.uniform(0, 360))
        if all(level.clear_distance(x, y, angle + turn) >= free for turn, free in needs):
            script.x, script.y, script.angle = float(x), float(y), angle
            return
    raise Failed("no place with enough room")


def _before_door(script: Script, level: Level, rng: Generator) -> None:
    if not len(level.doors):
        raise Failed("no door in the level")
    x, y, angle = level.doors[rng.integers(len(level.doors))]
    away = rng.uniform(34, 56)  # "use" reaches 64
    script.x, script.y = x - away * np.cos(np.deg2rad(angle)), y - away * np.sin(np.deg2rad(angle))
    script.angle = float(angle)


def _sway(script: Script, rng: Generator) -> None:
    """Small motions of the camera: turns of less than 20 degrees in all, short steps."""
    if rng.random() < classes.SWAY:
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.integers(6, 25))
            start = int(rng.integers(0, TICS - length))
            script.inputs.turn[start : start + length] += rng.uniform(2, 6) * rng.choice((-1, 1)) / length
    if rng.random() < classes.STEP:
        axis = script.inputs.forward if rng.random() < 0.6 else script.inputs.left
        length = int(rng.integers(5, 14))
        start = int(rng.integers(0, TICS - length))
        axis[start : start + length] += rng.uniform(6, 16) * rng.choice((-1, 1))


def _plan_fire(script: Script, event: EventClass, level: Level, rng: Generator) -> None:
    _stand(script, level, rng, (0.0, 160.0), doors=False)
    script.hand = event.what
    longest = 5 if event.what in ("RocketLauncher", "Shotgun") else TICS - script.onset
    shortest = 3 if event.what in ("RocketLauncher", "Shotgun", "Pistol") else 16
    script.inputs.attack[script.onset : script.onset + int(rng.integers(shortest, longest + 1))] = 1.0


def _plan_actor(script: Script, event: EventClass, level: Level, rng: Generator) -> None:
    """A barrel that explodes or a monster that wakes, there from the start, or a teleport's fog."""
    near, far = classes.MONSTER_DISTANCE
    angle = int(rng.choice(addon.ACTOR_ANGLES))
    distance = int(rng.choice([d for d in addon.ACTOR_DISTANCES if near <= d <= far]))
    _stand(script, level, rng, (float(angle), distance + 48.0), doors=False)
    script.watch = event.what
    put = f"give {addon.actor_item(event.what, angle, distance)}"
    # "notarget" was on from the start and is now switched off.
    begins = {"barrel": f"kill {event.what}", "wake": "notarget", "teleport": put}
    script.commands[script.onset] = [begins[event.script]]
    if event.script != "teleport":
        script.put.append(put)


def _plan_pickup(script: Script, event: EventClass, level: Level, rng: Generator) -> None:
    distance = int(rng.choice(addon.ACTOR_DISTANCES[:3]))
    _stand(script, level, rng, (0.0, distance + 64.0), doors=False)
    script.watch = event.what + str(rng.choice(list(addon.ITEMS)))
    script.put.append(f"give {addon.actor_item(script.watch, 0, distance)}")
    speed = rng.uniform(14, 25)
    walk = int((distance - 36) * 3 / speed) + 10  # touching is 36 away; reaching the speed takes some tics
    start = max(0, script.onset - walk + 4)
    script.inputs.turn[: start + walk] = 0  # straight at it
    script.inputs.forward[:] = script.inputs.left[:] = 0
    script.inputs.forward[start : start + walk] = speed


def _plan_door(script: Script, event: EventClass, level: Level, rng: Generator) -> None:
    _before_door(script, level, rng)
    script.inputs.use[script.onset] = 1.0
    for axis in (script.inputs.turn, script.inputs.forward, script.inputs.left):
        axis[: script.onset + 36] = 0  # so that only the door moves in the image


def _plan_walk(script: Script, event: EventClass, level: Level, rng: Generator) -> None:
    units = rng.uniform(*classes.WALK_UNITS)
    ahead, back = (units + 48, 48.0) if event.what == "forward" else (64.0, units + 48)
    _stand(script, level, rng, (0.0, ahead), (180.0, back), doors=False)
    script.inputs.forward[:] = SIGNS[event.what] * units * 3 / (TICS - 9)
    script.inputs.turn[:] = rng.uniform(-6, 6) / TICS


def _plan_turn(script: Script, event: EventClass, level: Level, rng: Generator) -> None:
    _stand(script, level, rng, (0.0, 96.0))
    phase, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    speed = 1 + depth * np.sin(np.linspace(0, 2 * np.pi, TICS) + phase)
    script.inputs.turn[:] = SIGNS[event.what] * rng.uniform(*classes.TURN_DEGREES) * speed / speed.sum()
    if rng.random() < classes.STEP:
        start = int(rng.integers(0, TICS - 12))
        axis = script.inputs.forward if rng.random() < 0.6 else script.inputs.left
        axis[start : start + 12] = rng.uniform(6, 14) * rng.choice((-1, 1))


PLANNERS = {
    "fire": _plan_fire,
    **dict.fromkeys(("barrel", "wake", "teleport"), _plan_actor),
    "pickup": _plan_pickup,
    "door": _plan_door,
    "walk": _plan_walk,
    "turn": _plan_turn,
}


def play(engine: Engine, script: Script, seed: int) -> list[Tic]:
    """Play a script from a fresh start of its level; TICS tics.

    Raises Failed if the player is not where the script wants it, or the level ended.
    """
    engine.begin(script.level, seed)
    engine.command("god", "notarget", f"give {script.hand}", "give ammo")
    engine.wait(1)
    engine.command(f"use {script.hand}", f"warp {script.x:.0f} {script.y:.0f}")
    engine.wait(2)
    now = engine.tic()
    if np.hypot(now.x - script.x, now.y - script.y) > 4:
        raise Failed("warp did not work")
    engine.tic(turn=(script.angle - now.angle + 180) % 360 - 180)
    engine.command(*script.put)
    engine.wait(SETTLE_TICS)
    tics = []
    for t in range(TICS):
        engine.command(*script.commands.get(t, []))
        tics.append(engine.tic(*script.inputs[t].item(), watch=script.watch))
    return tics


def verify(label: str, visible: bool, script: Script, tics: list[Tic]) -> int | None:
    """Check that the event happened, was heard by the engine and, if `visible`, is on screen.

    Returns its first tic (None for the silent motions). Raises Failed with what is missing.
    """
    event = CLASSES[label]
    loudness = np.array([np.sqrt(np.mean(tic.pcm.astype(np.float32) ** 2)) for tic in tics])
    if event.kind == "mostly_seen":
        _verify_motion(event, tics, loudness)
        return None
    if loudness[: max(script.onset - 4, 1)].max() > QUIET:
        raise Failed("a sound before the event")
    heard = np.flatnonzero(loudness[: script.onset + 16] > LOUD)
    if not len(heard):
        raise Failed("the event was not heard")
    onset = int(heard[0])
    if visible and not _is_seen(event, script, tics, onset):
        raise Failed("the event was not seen")
    return onset


def _verify_motion(event: EventClass, tics: list[Tic], loudness: np.ndarray) -> None:
    if loudness.max() > QUIET:
        raise Failed("a motion made a sound")
    first, last = tics[0], tics[-1]
    least = {"turn": 0.9 * classes.TURN_DEGREES[0], "walk": 0.8 * classes.WALK_UNITS[0]}[event.script]
    if event.script == "turn":
        moved = (last.angle - first.angle + 180) % 360 - 180
    else:
        heading = np.deg2rad(first.angle)
        moved = (last.x - first.x) * np.cos(heading) + (last.y - first.y) * np.sin(heading)
    if SIGNS[event.what] * moved < least:
        raise Failed("the motion was stopped")
    if max(np.hypot(b.x - a.x, b.y - a.y) for a, b in itertools.pairwise(tics)) > 40:
        raise Failed("the player was teleported")


def _is_seen(event: EventClass, script: Script, tics: list[Tic], onset: int) -> bool:
    on_screen = np.array([tic.pixels for tic in tics]) >= classes.MIN_PIXELS
    if event.script == "fire":
        return event.what == "EvSaw" or tics[-1].ammo < tics[0].ammo
    if event.script in ("wake", "teleport"):
        return int(on_screen[onset:].sum()) >= (12 if event.script == "wake" else 8)
    if event.script == "barrel":
        return bool(on_screen[max(onset - 3, 0)] and on_screen[onset : onset + 8].sum() >= 3)
    if event.script == "pickup":
        return bool(on_screen[:onset].sum() >= 3 and tics[-1].pixels == 0)
    before, after = (tics[t].frame.astype(np.int16) for t in (script.onset - 1, script.onset + 34))
    return float((np.abs(after - before).max(axis=2) > 16).mean()) > 0.15  # a door that moved
