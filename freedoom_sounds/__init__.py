"""Freedoom-Sounds: two-second first-person clips with sound, generated from a seed by a game engine."""
