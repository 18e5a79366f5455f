"""The game engine behind Freedoom-Sounds: levels, an add-on of our own, and one tic at a time.

ViZDoom's wheel carries the engine and the freely licensed game Freedoom. This module hides what is
particular to them: where a level has room (read from the WAD file), how things are put into it (a small
add-on written in the engine's own DECORATE language, whose inventory items place an actor relative to the
player when they are given), and how sound is switched on without a system package. Lengths are map units
(a player is 56 high), angles degrees, counter-clockwise; the game runs at 35 tics a second.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import importlib.util
import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TICS_PER_SECOND = 35
SAMPLE_RATE = 22_050
SAMPLES_PER_TIC = SAMPLE_RATE // TICS_PER_SECOND
SETTLE_TICS = 45  # from a level's start until all is still; raising a weapon takes about 40

ACTOR_ANGLES = tuple(range(-24, 25, 8))
ACTOR_DISTANCES = tuple(range(64, 401, 24))
SOUND_ANGLES = tuple(range(0, 360, 45))
SOUND_DISTANCES = (64, 160, 288)

INSTALL_SOUND = (
    "the game engine returned only silence, so OpenAL was not found: install it with `pip install cyal` "
    "(or the system package libopenal1)"
)


class EngineError(RuntimeError):
    """The engine is not usable: not installed, without sound, or ended unexpectedly."""


# --------------------------------------------------------------------------------------------- levels


@dataclass(frozen=True)
class Level:
    """What the generator needs to know of one level.

    things: (n, 2) positions where the level's author put something. walls: (m, 4) segments x1, y1, x2, y2
    that stop a walker. doors: (k, 3) x, y of a door's middle and the angle that a player in front faces.
    """

    things: np.ndarray
    walls: np.ndarray
    doors: np.ndarray

    def clear_distance(self, x: float, y: float, angle: float) -> float:
        """Map units a 36-wide walker can go from (x, y) towards `angle` before a wall (at most 4096)."""
        heading = np.deg2rad(angle)
        direction = np.array([np.cos(heading), np.sin(heading)])
        side = np.array([-direction[1], direction[0]])
        start, end = self.walls[:, :2], self.walls[:, 2:]
        edge = end - start
        determinant = edge[:, 0] * direction[1] - edge[:, 1] * direction[0]
        nearest = 4096.0
        with np.errstate(divide="ignore", invalid="ignore"):
            for offset in (-18.0, 0.0, 18.0):
                gap = start - (np.array([x, y]) + offset * side)
                along = (edge[:, 0] * gap[:, 1] - edge[:, 1] * gap[:, 0]) / determinant
                across = (direction[0] * gap[:, 1] - direction[1] * gap[:, 0]) / determinant
                hit = (determinant != 0) & (along >= 0) & (across >= 0) & (across <= 1)
                if hit.any():
                    nearest = min(nearest, float(along[hit].min()))
        return nearest


def game_path(game: str) -> Path:
    """Path of `freedoom1` or `freedoom2` inside ViZDoom's wheel (nothing is imported for it)."""
    found = importlib.util.find_spec("vizdoom")
    if found is None or found.origin is None:
        raise EngineError("the package vizdoom is missing: install it with `pip install vizdoom`")
    return Path(found.origin).parent / f"{game}.wad"


@functools.lru_cache(maxsize=64)
def read_level(game: str, level: str) -> Level:
    """Read things, walls and doors of a level (Doom's binary map format); ValueError if the game has no such level.

    A wall is a line without a back, one flagged impassable, a step of more than 24, or an opening lower
    than the player's 56. A door is a closed sector behind a line of special 1, 31, 117 or 118: those open
    on "use" without a key.
    """
    wad = game_path(game)
    data = wad.read_bytes()
    _, count, directory = struct.unpack_from("<4sii", data)
    lumps = np.frombuffer(data, [("start", "<i4"), ("size", "<i4"), ("name", "S8")], count, directory)
    (found,) = np.nonzero(lumps["name"] == level.upper().encode())
    if not len(found):
        raise ValueError(f"{wad}: no level {level.upper()}; choose one the game has, such as MAP01")

    def table(offset: int, layout: list[tuple[str, str]]) -> np.ndarray:
        lump, dtype = lumps[found[0] + offset], np.dtype(layout)
        return np.frombuffer(data, dtype, lump["size"] // dtype.itemsize, lump["start"])

    things = table(1, [(n, "<i2") for n in ("x", "y", "angle", "kind", "flags")])
    lines = table(2, [(n, "<u2") for n in ("a", "b", "flags", "special", "tag", "right", "left")])
    sides = table(3, [("x", "<i2"), ("y", "<i2"), ("t", "S24"), ("sector", "<u2")])
    points = table(4, [("x", "<i2"), ("y", "<i2")])
    sectors = table(8, [("floor", "<i2"), ("ceiling", "<i2"), ("t", "S16"), ("rest", "S6")])

    xy = np.stack([points["x"], points["y"]], 1).astype(float)
    ends = np.concatenate([xy[lines["a"]], xy[lines["b"]]], 1)
    two_sided = lines["left"] != 0xFFFF
    front = sectors[sides["sector"][lines["right"]]]
    back = sectors[sides["sector"][np.where(two_sided, lines["left"], lines["right"])]]
    step = np.abs(front["floor"].astype(int) - back["floor"])
    opening = np.minimum(front["ceiling"], back["ceiling"]).astype(int) - np.maximum(front["floor"], back["floor"])
    blocked = ~two_sided | (lines["flags"] & 1 > 0) | (step > 24) | (opening < 56)

    length = np.hypot(ends[:, 2] - ends[:, 0], ends[:, 3] - ends[:, 1])
    closed = back["ceiling"].astype(int) - back["floor"] < 8
    is_door = two_sided & np.isin(lines["special"], (1, 31, 117, 118)) & closed & (length >= 64)
    dx, dy = (ends[is_door, 2] - ends[is_door, 0]), (ends[is_door, 3] - ends[is_door, 1])
    middle = (ends[is_door, :2] + ends[is_door, 2:]) / 2
    facing = np.rad2deg(np.arctan2(dx, -dy))  # the front is on a line's right, so one looks to its left
    return Level(
        things=np.unique(np.stack([things["x"], things["y"]], 1).astype(float), axis=0),
        walls=ends[blocked],
        doors=np.concatenate([middle, facing[:, None]], 1),
    )


# --------------------------------------------------------------------------------------------- add-on


def actor_item(actor: str, angle: int, distance: int) -> str:
    """Inventory item that puts `actor` (facing the player) at one of ACTOR_ANGLES and ACTOR_DISTANCES."""
    return f"Put_{actor}_{angle + 90}_{distance}"


def sound_item(name: str, angle: int, distance: int) -> str:
    """Inventory item that plays sound `name` from one of SOUND_ANGLES and SOUND_DISTANCES."""
    return f"Play_{name}_{angle}_{distance}"


def addon_text(actors: dict[str, str], sounds: dict[str, tuple[str, int, int]]) -> str:
    """DECORATE source of the add-on.

    actors: name -> its DECORATE definition ("" for one the game has). sounds: name -> (the engine's name
    of the sound, tics between repetitions, number of repetitions).
    """
    text = [definition for definition in actors.values() if definition]

    def add_item(name: str, spawn: str) -> None:
        text.append(f"actor {name} : CustomInventory {{ States {{ Pickup: TNT1 A 0 A_SpawnItemEx({spawn}) Stop }} }}")

    for actor, angle, distance in itertools.product(actors, ACTOR_ANGLES, ACTOR_DISTANCES):
        x, y = distance * np.cos(np.deg2rad(angle)), distance * np.sin(np.deg2rad(angle))
        # The last angle turns the offset, too: hence the minus signs.
        add_item(actor_item(actor, angle, distance), f'"{actor}", {-x:.1f}, {-y:.1f}, 0, 0, 0, 0, 180')
    for name, (sound, period, times) in sounds.items():
        shots = f'TNT1 A {period} A_PlaySound("{sound}", CHAN_BODY)\n' * times
        states = f"Spawn: TNT1 A 1\n{shots}TNT1 A 70\nStop"
        text.append(f"actor Noise_{name} {{ +NOINTERACTION States {{ {states} }} }}")
        for angle, distance in itertools.product(SOUND_ANGLES, SOUND_DISTANCES):
            x, y = distance * np.cos(np.deg2rad(angle)), distance * np.sin(np.deg2rad(angle))
            spawn = f'"Noise_{name}", {x:.1f}, {y:.1f}, 32, 0, 0, 0, 0, SXF_NOCHECKPOSITION'
            add_item(sound_item(name, angle, distance), spawn)
    return "\n".join(text)


def _write_addon(path: Path, text: str) -> None:
    """Write the add-on as a WAD file: our actors, and no words across the picture where a secret is found."""
    lumps = {b"DECORATE": text.encode("ascii"), b"LANGUAGE": b'[enu default]\nSECRETMESSAGE = "";\n'}
    body, directory = b"", b""
    for name, content in lumps.items():
        directory += struct.pack("<ii8s", 12 + len(body), len(content), name)
        body += content
    path.write_bytes(b"PWAD" + struct.pack("<ii", len(lumps), 12 + len(body)) + body + directory)


@contextlib.contextmanager
def _started_in(scratch: Path) -> Iterator[None]:
    """Child processes start in the folder `scratch` and find cyal's OpenAL there, under the name they look for.

    Raises EngineError where there is no OpenAL. An engine makes files in its working directory, and two that
    start at once in the same one get in each other's way.
    """
    cyal = importlib.util.find_spec("cyal")
    libraries = sorted(Path(cyal.origin).parent.glob("libopenal*")) if cyal and cyal.origin else []
    if libraries:
        (scratch / "libopenal.so.1").symlink_to(libraries[0].resolve())
    elif ctypes.util.find_library("openal") is None:
        raise EngineError(INSTALL_SOUND)
    before = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = f"{scratch}:{before}" if before else str(scratch)
    try:
        with contextlib.chdir(scratch):
            yield
    finally:
        if before is None:
            del os.environ["LD_LIBRARY_PATH"]
        else:
            os.environ["LD_LIBRARY_PATH"] = before


# --------------------------------------------------------------------------------------------- engine


@dataclass(frozen=True)
class Tic:
    """What one tic gave: picture (H, W, 3) uint8, sound (630, 2) int16, and what a check needs.

    pixels: how many of the picture's pixels show the actor that was watched. ammo: of the weapon in hand.
    """

    frame: np.ndarray
    pcm: np.ndarray
    pixels: int
    x: float
    y: float
    angle: float
    ammo: float


class Engine:
    """A running engine with our add-on; `close` ends it.

    Raises EngineError if ViZDoom is not installed or the engine does not start.
    """

    def __init__(self, game: str, addon: str) -> None:
        game_file = game_path(game)
        import vizdoom

        self._failures = (
            vizdoom.ViZDoomUnexpectedExitException,
            vizdoom.ViZDoomErrorException,
            vizdoom.ViZDoomIsNotRunningException,
        )
        self._scratch = tempfile.TemporaryDirectory(prefix="freedoom-")
        scratch = Path(self._scratch.name)
        _write_addon(scratch / "addon.wad", addon)
        self._game = self._configured(vizdoom, game_file, scratch)
        try:
            with _started_in(scratch):
                self._game.init()
        except self._failures as error:
            raise EngineError(f"the game engine did not start: {error}") from error

    @staticmethod
    def _configured(vizdoom, game_file: Path, scratch: Path):
        game = vizdoom.DoomGame()
        game.set_doom_game_path(str(game_file))
        game.set_doom_scenario_path(str(scratch / "addon.wad"))
        game.set_doom_config_path(str(scratch / "engine.ini"))
        game.set_doom_map("map01")
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_render_hud(False)
        game.set_render_messages(False)
        game.set_labels_buffer_enabled(True)
        game.set_sound_enabled(True)
        game.set_audio_buffer_enabled(True)
        game.set_audio_sampling_rate(vizdoom.SamplingRate.SR_22050)
        game.set_audio_buffer_size(1)
        button, variable = vizdoom.Button, vizdoom.GameVariable
        game.set_available_buttons(
            [
                button.ATTACK,
                button.USE,
                button.TURN_LEFT_RIGHT_DELTA,
                button.MOVE_FORWARD_BACKWARD_DELTA,
                button.MOVE_LEFT_RIGHT_DELTA,
            ]
        )
        game.set_available_game_variables(
            [variable.POSITION_X, variable.POSITION_Y, variable.ANGLE, variable.SELECTED_WEAPON_AMMO]
        )
        game.set_episode_timeout(0)
        # snd_efx 0: OpenAL 1.19 aborts on the engine's effects. No monsters but those a script puts there.
        game.add_game_args("-nomonsters +sv_cheats 1 +neverswitchonpickup 1")
        # r_visibility 64: light reaches far, so that small pictures of dark levels show something.
        game.add_game_args("+snd_efx 0 +snd_musicvolume 0 +r_visibility 64")
        return game

    def close(self) -> None:
        """End the engine's process and remove its files."""
        self._game.close()
        self._scratch.cleanup()

    def begin(self, level: str, seed: int) -> None:
        """Load `level` afresh with the engine's random numbers seeded: nothing of before remains."""
        try:
            self._game.set_seed(seed)
            self._game.set_doom_map(level)
            self._game.new_episode()
        except self._failures as error:
            raise EngineError(f"the game engine ended while it loaded {level}: {error}") from error

    def command(self, text: str) -> None:
        """Queue a console command; it takes effect in the next tic."""
        self._game.send_game_command(text)

    def wait(self, tics: int) -> None:
        """Let `tics` pass without input or picture."""
        self._act([0.0] * 5, tics)

    def tic(
        self,
        *,
        attack: bool = False,
        use: bool = False,
        turn: float = 0.0,
        forward: float = 0.0,
        left: float = 0.0,
        watch: str = "",
    ) -> Tic | None:
        """One tic: `turn` degrees, forward and left in the engine's own speed (25 walks: 8.3 units a tic).

        watch: name of the actor whose pixels are counted. Returns None where the level is over.
        """
        self._act([float(attack), float(use), float(-turn), float(forward), float(-left)], 1)
        if self._game.is_episode_finished():
            return None
        state = self._game.get_state()
        watched = [label.value for label in state.labels if label.object_name in (watch, f"Dead{watch}")]
        pixels = int(np.isin(state.labels_buffer, watched).sum()) if watched else 0
        player = (float(value) for value in state.game_variables)
        return Tic(np.array(state.screen_buffer), np.array(state.audio_buffer), pixels, *player)

    def _act(self, action: list[float], tics: int) -> None:
        try:
            self._game.make_action(action, tics)
        except self._failures as error:
            raise EngineError(f"the game engine ended unexpectedly: {error}") from error
