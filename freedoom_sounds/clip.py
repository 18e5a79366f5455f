"""One clip of Freedoom-Sounds: the classes, a script for each, its checks, and its rendering.

A script says where the player stands, what is put there and the input of every tic. What makes the set
easy or hard to learn is in the constants below the classes (of the picture) and at the top of
`freedoom_sound` (of the sound). Lengths are map units, angles degrees counter-clockwise, a tic is 1/35 s.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from freedoom_sounds import sound
from freedoom_sounds.engine import (
    ACTOR_ANGLES,
    ACTOR_DISTANCES,
    SETTLE_TICS,
    SOUND_ANGLES,
    SOUND_DISTANCES,
    TICS_PER_SECOND,
    Engine,
    EngineError,
    Level,
    Tic,
    actor_item,
    addon_text,
    read_level,
    sound_item,
)

GAME = "freedoom2"
TICS = 70


class EventClass(NamedTuple):
    """kind: a key of KINDS. script: a key of _PLANNERS. what: its weapon, actor or direction.

    sound: how it sounds out of view, as (the engine's sound, tics between repetitions, repetitions).
    """

    kind: str
    script: str
    what: str
    sound: tuple[str, int, int] | None = None


CLASSES: dict[str, EventClass] = {
    "fire_pistol": EventClass("seen_and_heard", "fire", "Pistol", ("weapons/pistol", 19, 2)),
    "fire_shotgun": EventClass("seen_and_heard", "fire", "Shotgun", ("weapons/shotgf", 37, 1)),
    "fire_chaingun": EventClass("seen_and_heard", "fire", "Chaingun", ("weapons/chngun", 4, 6)),
    "fire_rocket": EventClass("seen_and_heard", "fire", "RocketLauncher", ("weapons/rocklf", 20, 1)),
    "fire_plasma": EventClass("seen_and_heard", "fire", "PlasmaRifle", ("weapons/plasmaf", 3, 8)),
    "run_chainsaw": EventClass("seen_and_heard", "fire", "EvSaw", ("weapons/sawfull", 4, 7)),
    "barrel_explodes": EventClass("seen_and_heard", "barrel", "EvBarrel", ("world/barrelx", 70, 1)),
    "walk_forward": EventClass("mostly_seen", "walk", "forward"),
    "walk_backward": EventClass("mostly_seen", "walk", "backward"),
    "turn_left": EventClass("mostly_seen", "turn", "left"),
    "turn_right": EventClass("mostly_seen", "turn", "right"),
    "imp_wakes": EventClass("mostly_heard", "wake", "EvImp", ("imp/sight", 70, 1)),
    "demon_wakes": EventClass("mostly_heard", "wake", "EvDemon", ("demon/sight", 70, 1)),
    "zombieman_wakes": EventClass("mostly_heard", "wake", "EvZombie", ("grunt/sight", 70, 1)),
    "cacodemon_wakes": EventClass("mostly_heard", "wake", "EvCaco", ("caco/sight", 70, 1)),
    "picks_up_item": EventClass("mostly_heard", "pickup", "EvItem", ("misc/i_pkup", 70, 1)),
    "teleport": EventClass("mostly_heard", "teleport", "TeleportFog", ("misc/teleport", 70, 1)),
    "door_opens": EventClass("mostly_heard", "door", "", ("doors/dr1_open", 70, 1)),
}

# ------------------------------------------------------------------------------- what sets the difficulty


class Kind(NamedTuple):
    """visible, audible: probabilities (an event that is not seen is always heard). snr: range in dB."""

    visible: float
    audible: float
    snr: tuple[float, float]


KINDS = {
    "seen_and_heard": Kind(visible=0.85, audible=0.80, snr=(-12.0, 10.0)),
    "mostly_seen": Kind(visible=1.0, audible=0.0, snr=(-12.0, 10.0)),
    "mostly_heard": Kind(visible=0.60, audible=0.85, snr=(-12.0, 10.0)),
}
DECOY = 0.15  # probability of one or two dormant monsters, barrels or items in view
AT_DOOR = 0.05  # probability of standing before a closed door in the other classes
SWAY = 0.40  # probability of a moving camera in classes that are no motion
STEP = 0.25  # probability of a short step in them
TURN_DEGREES = (55.0, 110.0)
WALK_UNITS = (180.0, 420.0)
MONSTER_DISTANCE = (80, 176)
MIN_PIXELS = 150  # of 160 x 120: what is smaller on screen does not count as seen

TRIES = 60  # per clip; one that comes to nothing is soon over

# ------------------------------------------------------------------------------- actors, weapons, sounds

HANDS = ("Fist", "EvSaw", "Pistol", "Shotgun", "SuperShotgun", "Chaingun", "RocketLauncher", "PlasmaRifle")

_MONSTERS = {  # name -> the game's own actor, sprite, idle frames
    "Imp": ("DoomImp", "TROO", "AB"),
    "Demon": ("Demon", "SARG", "AB"),
    "Zombie": ("Zombieman", "POSS", "AB"),
    "Caco": ("Cacodemon", "HEAD", "A"),
}
_ITEMS = {"A": "STIM", "B": "MEDI", "C": "ARM1", "D": "BPAK", "E": "SHEL"}
# Ours differ from the game's own only so that nothing else happens: monsters wake and walk but do not shoot
# (what a player puts somewhere would be friendly: hence the flag), decoys stand still and cannot be hurt, the
# chainsaw is silent until it is used, the level's own barrels are gone.
ACTORS = (
    {
        f"Ev{name}": f"""actor Ev{name} : {base} {{ +NOPAIN +INVULNERABLE States {{
            Spawn:
                {sprite} A 1
                {sprite} A 0 A_ChangeFlag("FRIENDLY", 0)
            Idle:
                {sprite} {frames} 6 A_Look
                Loop
            Missile:
                Stop
            Melee:
                Stop
        }} }}"""
        for name, (base, sprite, frames) in _MONSTERS.items()
    }
    | {
        f"Dc{name}": f"""actor Dc{name} : {base} {{ +NOPAIN +INVULNERABLE States {{
            Spawn:
                {sprite} {frames} 10
                Loop
        }} }}"""
        for name, (base, sprite, frames) in _MONSTERS.items()
    }
    | {
        f"EvItem{key}": f"actor EvItem{key} : CustomInventory {{ +INVENTORY.ALWAYSPICKUP "
        f'Inventory.PickupMessage "" Inventory.PickupSound "misc/i_pkup" '
        f"States {{ Spawn: {sprite} A -1\nStop\nPickup: TNT1 A 0\nStop }} }}"
        for key, sprite in _ITEMS.items()
    }
    | {
        f"DcItem{key}": f"actor DcItem{key} {{ States {{ Spawn: {sprite} A -1\nStop }} }}"
        for key, sprite in _ITEMS.items()
    }
    | {
        "EvBarrel": "actor EvBarrel : ExplosiveBarrel { +ISMONSTER }\n"
        "actor NoBarrel replaces ExplosiveBarrel { States { Spawn: TNT1 A 1\nStop } }",
        "DcBarrel": "actor DcBarrel : ExplosiveBarrel { +INVULNERABLE }",
        "TeleportFog": 'actor EvSaw : Chainsaw { Weapon.ReadySound "" Weapon.UpSound "" }',
    }
)
DECOYS = tuple(name for name in ACTORS if name.startswith("Dc"))


class GenerationError(RuntimeError):
    """A clip could not be made; the text names its class and seed."""


class _Failed(Exception):  # noqa: N818 (an outcome that is counted, no error)
    """This try did not come out as planned; the text is the reason that is counted."""


# ------------------------------------------------------------------------------- scripts


@dataclass
class Script:
    """What is to happen in one clip: where, with what, and the input of each of its TICS tics."""

    level: str
    hand: str
    x: float = 0.0
    y: float = 0.0
    angle: float = 0.0
    put: list[str] = field(default_factory=list)  # commands before the clip
    commands: dict[int, str] = field(default_factory=dict)  # tic -> command
    watch: str = ""
    onset: int = 0
    attack: np.ndarray = field(default_factory=lambda: np.zeros(TICS, bool))
    use: np.ndarray = field(default_factory=lambda: np.zeros(TICS, bool))
    turn: np.ndarray = field(default_factory=lambda: np.zeros(TICS))
    forward: np.ndarray = field(default_factory=lambda: np.zeros(TICS))
    left: np.ndarray = field(default_factory=lambda: np.zeros(TICS))


def plan(label: str, visible: bool, level_name: str, level: Level, rng: np.random.Generator) -> Script:
    """Draw one clip's script; raises _Failed where the level has no place for it (another draw may find one)."""
    event = CLASSES[label]
    script = Script(level_name, hand=str(rng.choice(HANDS)), onset=int(rng.integers(*sound.ONSET_TICS)))
    if event.script not in ("walk", "turn"):
        _sway(script, rng)
    if not visible:
        _stand(script, level, rng)
        item = sound_item(label, int(rng.choice(SOUND_ANGLES)), int(rng.choice(SOUND_DISTANCES)))
        script.commands[script.onset] = f"give {item}"
    else:
        _PLANNERS[event.script](script, event, level, rng)
    if rng.random() < DECOY:
        for _ in range(int(rng.integers(1, 3))):
            distance = int(rng.choice(ACTOR_DISTANCES[2:]))
            script.put.append(f"give {actor_item(str(rng.choice(DECOYS)), int(rng.choice(ACTOR_ANGLES)), distance)}")
    return script


def _stand(
    script: Script, level: Level, rng: np.random.Generator, *needs: tuple[float, float], doors: bool = True
) -> None:
    """Choose a place and a direction; needs: (angle relative to it, units that must be free there)."""
    if doors and len(level.doors) and rng.random() < AT_DOOR:
        _before_door(script, level, rng)
        return
    needs = needs or ((0.0, 128.0),)
    for _ in range(40):
        x, y = level.things[rng.integers(len(level.things))]
        angle = float(rng.uniform(0, 360))
        if all(level.clear_distance(x, y, angle + turn) >= free for turn, free in needs):
            script.x, script.y, script.angle = float(x), float(y), angle
            return
    raise _Failed("no place with enough room")


def _before_door(script: Script, level: Level, rng: np.random.Generator) -> None:
    if not len(level.doors):
        raise _Failed("no door in the level")
    x, y, angle = level.doors[rng.integers(len(level.doors))]
    away = rng.uniform(34, 56)  # "use" reaches 64
    script.x, script.y = x - away * np.cos(np.deg2rad(angle)), y - away * np.sin(np.deg2rad(angle))
    script.angle = float(angle)


def _sway(script: Script, rng: np.random.Generator) -> None:
    """Small motions of the camera: turns of less than 20 degrees in all, short steps."""
    if rng.random() < SWAY:
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.integers(6, 25))
            start = int(rng.integers(0, TICS - length))
            script.turn[start : start + length] += rng.uniform(2, 6) * rng.choice((-1, 1)) / length
    if rng.random() < STEP:
        axis = script.forward if rng.random() < 0.6 else script.left
        length = int(rng.integers(5, 14))
        start = int(rng.integers(0, TICS - length))
        axis[start : start + length] += rng.uniform(6, 16) * rng.choice((-1, 1))


def _plan_fire(script: Script, event: EventClass, level: Level, rng: np.random.Generator) -> None:
    _stand(script, level, rng, (0.0, 160.0), doors=False)
    script.hand = event.what
    longest = 5 if event.what in ("RocketLauncher", "Shotgun") else TICS - script.onset
    shortest = 3 if event.what in ("RocketLauncher", "Shotgun", "Pistol") else 16
    script.attack[script.onset : script.onset + int(rng.integers(shortest, longest + 1))] = True


def _plan_actor(script: Script, event: EventClass, level: Level, rng: np.random.Generator) -> None:
    """A barrel that explodes or a monster that wakes, there from the start, or a teleport's fog."""
    near, far = MONSTER_DISTANCE
    angle = int(rng.choice(ACTOR_ANGLES))
    distance = int(rng.choice([d for d in ACTOR_DISTANCES if near <= d <= far]))
    _stand(script, level, rng, (float(angle), distance + 48.0), doors=False)
    script.watch = event.what
    put = f"give {actor_item(event.what, angle, distance)}"
    if event.script == "teleport":
        script.commands[script.onset] = put
    else:
        script.put.append(put)
        # "notarget" was on from the start and is now switched off.
        script.commands[script.onset] = f"kill {event.what}" if event.script == "barrel" else "notarget"


def _plan_pickup(script: Script, event: EventClass, level: Level, rng: np.random.Generator) -> None:
    distance = int(rng.choice(ACTOR_DISTANCES[:3]))
    _stand(script, level, rng, (0.0, distance + 64.0), doors=False)
    script.watch = event.what + str(rng.choice(list(_ITEMS)))
    script.put.append(f"give {actor_item(script.watch, 0, distance)}")
    speed = rng.uniform(14, 25)
    walk = int((distance - 36) * 3 / speed) + 10  # touching is 36 away; reaching the speed takes some tics
    start = max(0, script.onset - walk + 4)
    script.turn[: start + walk] = 0  # straight at it
    script.forward[:] = script.left[:] = 0
    script.forward[start : start + walk] = speed


def _plan_door(script: Script, event: EventClass, level: Level, rng: np.random.Generator) -> None:
    _before_door(script, level, rng)
    script.use[script.onset] = True
    for axis in (script.turn, script.forward, script.left):
        axis[: script.onset + 36] = 0  # so that only the door moves the picture


def _plan_walk(script: Script, event: EventClass, level: Level, rng: np.random.Generator) -> None:
    units = rng.uniform(*WALK_UNITS)
    ahead, back = (units + 48, 48.0) if event.what == "forward" else (64.0, units + 48)
    _stand(script, level, rng, (0.0, ahead), (180.0, back), doors=False)
    sign = 1 if event.what == "forward" else -1
    script.forward[:] = sign * units * 3 / (TICS - 9)
    script.turn[:] = rng.uniform(-6, 6) / TICS


def _plan_turn(script: Script, event: EventClass, level: Level, rng: np.random.Generator) -> None:
    _stand(script, level, rng, (0.0, 96.0))
    sign = 1 if event.what == "left" else -1
    phase, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    speed = 1 + depth * np.sin(np.linspace(0, 2 * np.pi, TICS) + phase)
    script.turn[:] = sign * rng.uniform(*TURN_DEGREES) * speed / speed.sum()
    if rng.random() < STEP:
        start = int(rng.integers(0, TICS - 12))
        axis = script.forward if rng.random() < 0.6 else script.left
        axis[start : start + 12] = rng.uniform(6, 14) * rng.choice((-1, 1))


_PLANNERS = {
    "fire": _plan_fire,
    "barrel": _plan_actor,
    "wake": _plan_actor,
    "teleport": _plan_actor,
    "pickup": _plan_pickup,
    "door": _plan_door,
    "walk": _plan_walk,
    "turn": _plan_turn,
}


def play(engine: Engine, script: Script, seed: int) -> list[Tic]:
    """Play a script from a fresh start of its level; TICS tics.

    Raises _Failed if the player is not where the script wants it, or the level ended.
    """
    engine.begin(script.level, seed)
    for command in ("god", "notarget", f"give {script.hand}", "give ammo"):
        engine.command(command)
    engine.wait(1)
    engine.command(f"use {script.hand}")
    engine.command(f"warp {script.x:.0f} {script.y:.0f}")
    engine.wait(2)
    now = engine.tic()
    if now is None or np.hypot(now.x - script.x, now.y - script.y) > 4:
        raise _Failed("warp did not work")
    engine.tic(turn=(script.angle - now.angle + 180) % 360 - 180)
    for command in script.put:
        engine.command(command)
    engine.wait(SETTLE_TICS)
    tics = []
    for t in range(TICS):
        if t in script.commands:
            engine.command(script.commands[t])
        tic = engine.tic(
            attack=bool(script.attack[t]),
            use=bool(script.use[t]),
            turn=float(script.turn[t]),
            forward=float(script.forward[t]),
            left=float(script.left[t]),
            watch=script.watch,
        )
        if tic is None:
            raise _Failed("the level ended")
        tics.append(tic)
    return tics


# ------------------------------------------------------------------------------- checks


def verify(label: str, visible: bool, script: Script, tics: list[Tic]) -> int | None:
    """Check that the event happened, was heard by the engine and, if `visible`, is on screen.

    Returns its first tic (None for the silent motions). Raises _Failed with what is missing.
    """
    event = CLASSES[label]
    loudness = np.array([np.sqrt(np.mean(tic.pcm.astype(np.float32) ** 2)) for tic in tics])
    if event.kind == "mostly_seen":
        _verify_motion(event, tics, loudness)
        return None
    if loudness[: max(script.onset - 4, 1)].max() > sound.QUIET:
        raise _Failed("a sound before the event")
    heard = np.flatnonzero(loudness[: script.onset + 16] > sound.LOUD)
    if not len(heard):
        raise _Failed("the event was not heard")
    onset = int(heard[0])
    if visible and not _is_seen(event, script, tics, onset):
        raise _Failed("the event was not seen")
    return onset


def _verify_motion(event: EventClass, tics: list[Tic], loudness: np.ndarray) -> None:
    if loudness.max() > sound.QUIET:
        raise _Failed("a motion made a sound")
    first, last = tics[0], tics[-1]
    if event.script == "turn":
        turned = (last.angle - first.angle + 180) % 360 - 180
        good = (turned if event.what == "left" else -turned) >= 0.9 * TURN_DEGREES[0]
    else:
        heading = np.deg2rad(first.angle)
        moved = (last.x - first.x) * np.cos(heading) + (last.y - first.y) * np.sin(heading)
        good = (moved if event.what == "forward" else -moved) >= 0.8 * WALK_UNITS[0]
    if not good:
        raise _Failed("the motion was stopped")
    if max(np.hypot(b.x - a.x, b.y - a.y) for a, b in itertools.pairwise(tics)) > 40:
        raise _Failed("the player was teleported")


def _is_seen(event: EventClass, script: Script, tics: list[Tic], onset: int) -> bool:
    on_screen = np.array([tic.pixels for tic in tics]) >= MIN_PIXELS
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


# ------------------------------------------------------------------------------- one clip


@dataclass(frozen=True)
class ClipSpec:
    """One clip to make. seed: of everything in it."""

    clip_id: str
    label: str
    split: str
    seed: int


def split_levels(split: str) -> list[str]:
    """Levels of a split; no two splits share one."""
    home = {number: "test" if number % 4 == 0 else "val" if number % 8 == 1 else "train" for number in range(1, 33)}
    return [f"map{number:02d}" for number in home if home[number] == split]


class Studio:
    """An engine and its bank of sounds; makes one clip after the other. A context manager.

    restarts: how often the engine had to be started again because it ended.
    """

    clips_per_engine = 200  # bounded, so that nothing an engine process collects matters

    def __init__(self) -> None:
        self.restarts = 0
        self._start()
        self.bank = sound.record_bank(self._engine)

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_) -> None:
        self._engine.close()

    def _start(self) -> None:
        events = {label: event.sound for label, event in CLASSES.items() if event.sound}
        self._engine = Engine(GAME, addon_text(ACTORS, events | sound.distractor_noises()))
        self._clips = 0

    def _restart(self) -> None:
        self._engine.close()
        self._start()

    def render(self, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray, dict]:
        """Make one clip: frames uint8 (T, H, W, 3), PCM int16 (samples, 2), and what is true of it.

        Raises GenerationError if no try worked, EngineError if the engine ended three times.
        """
        if self._clips >= self.clips_per_engine:
            self._restart()
        self._clips += 1
        rng = np.random.default_rng(spec.seed)
        kind = KINDS[CLASSES[spec.label].kind]
        visible = bool(rng.random() < kind.visible)
        audible = bool(rng.random() < kind.audible) or not visible
        snr, hidden = float(rng.uniform(*kind.snr)), float(rng.uniform(*sound.HIDDEN_SNR))
        reasons: list[str] = []
        crashes = 0
        while len(reasons) < TRIES:
            try:
                frames, raw, onset, level = self._try(spec, visible, len(reasons))
            except _Failed as reason:
                reasons.append(str(reason))
                continue
            except EngineError:  # the same try again, in a new engine: a crash must not change the set
                crashes += 1
                if crashes == 3:
                    raise
                self.restarts += 1
                self._restart()
                continue
            pcm, ratio = sound.mix(raw, onset, snr, self.bank, rng, hidden=None if audible else hidden)
            facts = {
                "scene": f"{GAME}/{level}",
                "audible": onset is not None and ratio > sound.AUDIBLE_SNR,
                "visible": visible,
                "snr_db": None if onset is None else round(ratio, 2),
                "onset_s": None if onset is None else round(onset / TICS_PER_SECOND, 3),
                "tries": len(reasons) + 1,
                "failed": dict(Counter(reasons)),
            }
            return frames, pcm, facts
        common = Counter(reasons).most_common(1)[0][0]
        raise GenerationError(
            f"class {spec.label}, clip {spec.clip_id}, seed {spec.seed}: no clip in {TRIES} tries "
            f"(mostly: {common}); choose another seed"
        )

    def _try(self, spec: ClipSpec, visible: bool, number: int) -> tuple[np.ndarray, np.ndarray, int | None, str]:
        rng = np.random.default_rng([spec.seed, number])
        name = str(rng.choice(split_levels(spec.split)))
        script = plan(spec.label, visible, name, read_level(GAME, name), rng)
        tics = play(self._engine, script, seed=int(rng.integers(1, 2**31)))
        onset = verify(spec.label, visible, script, tics)
        frames = np.stack([tic.frame for tic in tics])
        return frames, np.concatenate([tic.pcm for tic in tics]), onset, name
