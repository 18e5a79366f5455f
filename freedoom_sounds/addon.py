"""The add-on to the game: inventory items that put an actor or play a sound relative to the player.

Its text, in the engine's own language, is the template addon.txt. Distances are map units, angles degrees,
counter-clockwise from where the player looks.
"""

import struct
from pathlib import Path

import jinja2
import numpy as np

ACTOR_ANGLES = tuple(range(-24, 25, 8))
ACTOR_DISTANCES = tuple(range(64, 401, 24))
SOUND_ANGLES = tuple(range(0, 360, 45))
SOUND_DISTANCES = (64, 160, 288)

HANDS = ("Fist", "EvSaw", "Pistol", "Shotgun", "SuperShotgun", "Chaingun", "RocketLauncher", "PlasmaRifle")
MONSTERS = {  # name -> the game's own actor, sprite, idle frames
    "Imp": ("DoomImp", "TROO", "AB"),
    "Demon": ("Demon", "SARG", "AB"),
    "Zombie": ("Zombieman", "POSS", "AB"),
    "Caco": ("Cacodemon", "HEAD", "A"),
}
ITEMS = {"A": "STIM", "B": "MEDI", "C": "ARM1", "D": "BPAK", "E": "SHEL"}  # name -> sprite
_KINDS = (tuple(MONSTERS), tuple(f"Item{key}" for key in ITEMS), ("Barrel",))
# What can be put somewhere: Ev is part of an event, Dc a decoy.
ACTORS = (*(f"{role}{name}" for names in _KINDS for role in ("Ev", "Dc") for name in names), "TeleportFog")
DECOYS = tuple(name for name in ACTORS if name.startswith("Dc"))


def actor_item(actor: str, angle: int, distance: int) -> str:
    """Inventory item that puts one of ACTORS (facing the player) at one of ACTOR_ANGLES and ACTOR_DISTANCES."""
    return f"Put_{actor}_{angle + 90}_{distance}"


def sound_item(name: str, angle: int, distance: int) -> str:
    """Inventory item that plays sound `name` from one of SOUND_ANGLES and SOUND_DISTANCES."""
    return f"Play_{name}_{angle}_{distance}"


def write_addon(path: Path, sounds: dict[str, tuple[str, int, int]]) -> None:
    """Write the add-on as a WAD file: our actors, and no words across the image where a secret is found.

    sounds: name -> (the engine's name of the sound, tics between repetitions, number of repetitions).
    """
    template = Path(__file__).with_suffix(".txt").read_text(encoding="ascii")
    template = jinja2.Template(template, trim_blocks=True, undefined=jinja2.StrictUndefined)
    text = template.render(globals(), sounds=sounds, offset=_offset)  # it uses the names of this module
    lumps = {b"DECORATE": text.encode("ascii"), b"LANGUAGE": b'[enu default]\nSECRETMESSAGE = "";\n'}
    body, directory = b"", b""
    for name, content in lumps.items():
        directory += struct.pack("<ii8s", 12 + len(body), len(content), name)
        body += content
    path.write_bytes(b"PWAD" + struct.pack("<ii", len(lumps), 12 + len(body)) + body + directory)


def _offset(angle: int, distance: int) -> tuple[str, str]:
    """Units ahead and to the left."""
    return tuple(f"{distance * axis(np.deg2rad(angle)):.1f}" for axis in (np.cos, np.sin))
