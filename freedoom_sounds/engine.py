"""The game engine behind Freedoom-Sounds: started with our add-on and with sound, and played one tic at a time.

ViZDoom's wheel carries the engine and the freely licensed game Freedoom; engine.cfg holds its settings. Where a level
has room is read from the game's file. Lengths are map units, angles degrees, counter-clockwise.
"""

import contextlib
import functools
import importlib.util
import shlex
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import vizdoom
from vizdoom import ViZDoomErrorException, ViZDoomIsNotRunningException, ViZDoomUnexpectedExitException

from freedoom_sounds.addon import write_addon
from freedoom_sounds.classes import EngineError, Failed

WHEEL = Path(vizdoom.__file__).parent  # the engine `vizdoom` and the games freedoom1.wad, freedoom2.wad
TICS_PER_SECOND = 35
SAMPLE_RATE = 22_050
SAMPLES_PER_TIC = SAMPLE_RATE // TICS_PER_SECOND
# Of a tic: attack and use are 0 or 1, turn is degrees, forward and left the engine's own speed (25 walks: 8.3 units).
INPUTS = [(name, float) for name in ("attack", "use", "turn", "forward", "left")]
SETTLE_TICS = 45  # from a level's start until all is still; raising a weapon takes about 40


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Raise the engine's failures as EngineError."""
    try:
        yield
    except (ViZDoomErrorException, ViZDoomIsNotRunningException, ViZDoomUnexpectedExitException) as error:
        raise EngineError(f"the game engine {what}: {error}") from error


class Tic(NamedTuple):
    """What one tic gave: an image (H, W, 3) uint8, audio (630, 2) int16, and what a check needs.

    pixels: how many of the image's pixels show the actor that was watched. ammo: of the weapon in hand.
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

    sounds: those to play, as `addon.write_addon` takes them. Raises EngineError if the engine does not start.
    """

    def __init__(self, game: str, sounds: dict[str, tuple[str, int, int]]) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="freedoom-")
        scratch = Path(self._scratch.name)
        write_addon(scratch / "addon.wad", sounds)
        self._game = vizdoom.DoomGame()
        self._game.load_config(str(Path(__file__).with_suffix(".cfg")))
        self._game.set_vizdoom_path(_write_launcher(scratch))
        self._game.set_doom_game_path(str(WHEEL / f"{game}.wad"))
        self._game.set_doom_scenario_path(str(scratch / "addon.wad"))
        self._game.set_doom_config_path(str(scratch / "engine.ini"))
        with _named("did not start"):
            self._game.init()

    def close(self) -> None:
        """End the engine's process and remove its files."""
        self._game.close()
        self._scratch.cleanup()

    def begin(self, level: str, seed: int) -> None:
        """Load `level` afresh with the engine's random numbers seeded: nothing of before remains."""
        with _named(f"ended while it loaded {level}"):
            self._game.set_seed(seed)
            self._game.set_doom_map(level)
            self._game.new_episode()

    def command(self, *texts: str) -> None:
        """Queue console commands; they take effect in the next tic."""
        for text in texts:
            self._game.send_game_command(text)

    def wait(self, tics: int) -> None:
        """Let `tics` pass without input or image."""
        with _named("ended unexpectedly"):
            self._game.make_action([0.0] * len(INPUTS), tics)

    def tic(self, attack=0.0, use=0.0, turn=0.0, forward=0.0, left=0.0, *, watch: str = "") -> Tic:
        """One tic with INPUTS. watch: the actor whose pixels are counted. Raises Failed where the level is over."""
        with _named("ended unexpectedly"):
            self._game.make_action([attack, use, -turn, forward, -left], 1)
        if self._game.is_episode_finished():
            raise Failed("the level ended")
        state = self._game.get_state()
        watched = [label.value for label in state.labels if label.object_name in (watch, f"Dead{watch}")]
        pixels = int(np.isin(state.labels_buffer, watched).sum()) if watched else 0
        return Tic(np.array(state.screen_buffer), np.array(state.audio_buffer), pixels, *state.game_variables.tolist())


def _write_launcher(scratch: Path) -> str:
    """Write a script that starts the engine in `scratch`, for it makes files where it is; return its path.

    It finds cyal's OpenAL there, under the name that it looks for, and ends when the process that has started it does,
    however stalled it is (with util-linux, which Linux has; elsewhere a stalled one stays).
    """
    cyal = importlib.util.find_spec("cyal")
    for library in sorted(Path(cyal.origin).parent.glob("libopenal*"))[:1] if cyal and cyal.origin else []:
        (scratch / "libopenal.so.1").symlink_to(library.resolve())
    launcher, folder, engine = scratch / "launch", shlex.quote(str(scratch)), shlex.quote(str(WHEEL / "vizdoom"))
    commands = f"""#!/bin/sh
        cd {folder} || exit
        export LD_LIBRARY_PATH={folder}:"$LD_LIBRARY_PATH"
        command -v setpriv >/dev/null && exec setpriv --pdeathsig KILL {engine} "$@"
        exec {engine} "$@"
    """
    launcher.write_text(commands)
    launcher.chmod(0o700)
    return str(launcher)


class Level(NamedTuple):
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
        dx, dy = np.cos(heading), np.sin(heading)
        x1, y1, x2, y2 = self.walls.T
        edge_x, edge_y = x2 - x1, y2 - y1
        side = np.array([[-18.0], [0.0], [18.0]])  # to the left of the walker's middle
        gap_x, gap_y = x1 - (x - side * dy), y1 - (y + side * dx)
        determinant = edge_x * dy - edge_y * dx
        with np.errstate(divide="ignore", invalid="ignore"):
            along = (edge_x * gap_y - edge_y * gap_x) / determinant
            across = (dx * gap_y - dy * gap_x) / determinant
            hit = (determinant != 0) & (along >= 0) & (across >= 0) & (across <= 1)
        return float(along.min(initial=4096.0, where=hit))


@functools.lru_cache(maxsize=64)
def read_level(game: str, level: str) -> Level:
    """Read things, walls and doors of a level (Doom's binary map format); ValueError if the game has no such level.

    A wall is a line without a back, one flagged impassable, a step of more than 24, or an opening lower
    than the player's 56. A door is a closed sector behind a line of special 1, 31, 117 or 118: those open
    on "use" without a key.
    """
    wad = WHEEL / f"{game}.wad"
    data = wad.read_bytes()
    _, count, directory = struct.unpack_from("<4sii", data)
    lumps = np.frombuffer(data, [("start", "<i4"), ("size", "<i4"), ("name", "S8")], count, directory)
    (found,) = np.nonzero(lumps["name"] == level.upper().encode())
    if not len(found):
        raise ValueError(f"{wad}: no level {level.upper()}; choose one the game has, such as MAP01")

    def table(offset: int, layout: list[tuple]) -> np.ndarray:
        lump, dtype = lumps[found[0] + offset], np.dtype(layout)
        return np.frombuffer(data, dtype, lump["size"] // dtype.itemsize, lump["start"])

    things = np.unique(table(1, [("xy", "<i2", 2), ("rest", "S6")])["xy"].astype(float), axis=0)
    lines = table(2, [(n, "<u2") for n in ("a", "b", "flags", "special", "tag", "right", "left")])
    sides = table(3, [("rest", "S28"), ("sector", "<u2")])
    points = table(4, [("xy", "<i2", 2)])["xy"].astype(float)
    sectors = table(8, [("floor", "<i2"), ("ceiling", "<i2"), ("rest", "S22")])

    ends = np.concatenate([points[lines["a"]], points[lines["b"]]], 1)
    two_sided = lines["left"] != 0xFFFF
    front = sectors[sides["sector"][lines["right"]]]
    back = sectors[sides["sector"][np.where(two_sided, lines["left"], lines["right"])]]
    step = np.abs(front["floor"].astype(int) - back["floor"])
    opening = np.minimum(front["ceiling"], back["ceiling"]).astype(int) - np.maximum(front["floor"], back["floor"])
    blocked = ~two_sided | (lines["flags"] & 1 > 0) | (step > 24) | (opening < 56)

    dx, dy = (ends[:, 2:] - ends[:, :2]).T
    closed = back["ceiling"].astype(int) - back["floor"] < 8
    is_door = two_sided & np.isin(lines["special"], (1, 31, 117, 118)) & closed & (np.hypot(dx, dy) >= 64)
    middle = (ends[:, :2] + ends[:, 2:]) / 2
    facing = np.rad2deg(np.arctan2(dx, -dy))  # the front is on a line's right, so one looks to its left
    return Level(things, walls=ends[blocked], doors=np.column_stack([middle, facing])[is_door])
