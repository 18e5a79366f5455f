"""Freedoom-Sounds: two-second first-person clips with audio, generated from a seed by a game engine."""

from freedoom_sounds.generate import NAME, VERSION, generate

download = generate  # by this name mmtlib finds it: an entry point of the group mmtlib.sources
