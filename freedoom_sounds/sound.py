"""Sound of Freedoom-Sounds: a bank of the game's other sounds, and mixing at a known ratio.

Ratios are in dB, sound is stereo at the engine's rate; full scale is 1 unless 16-bit PCM is named.
"""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from freedoom_sounds.addon import sound_item
from freedoom_sounds.classes import EngineError
from freedoom_sounds.engine import SAMPLE_RATE, SAMPLES_PER_TIC, SETTLE_TICS, Engine

AUDIBLE_SNR = -14.0  # dB: an event that is nowhere above it counts as inaudible ...
HIDDEN_SNR = (-30.0, -15.0)  # ... and is turned down until its clearest tenth of a second is in this range
DISTRACTORS = (0.15, 0.35, 0.30, 0.20)  # probabilities of 0, 1, 2, 3 other sounds
LEVEL_DB = (-34.0, -18.0)  # RMS of an event over its window, relative to full scale
NOISE_DB = (25.0, 45.0)  # background noise below that level
ONSET_TICS = (7, 35)
WINDOW_TICS = 35  # an event's loudness is measured over one second from its onset
QUIET, LOUD = 25.0, 45.0  # RMS of a tic, 16-bit steps: silence before an event, an event's sound

# Other sounds of the game, and where they come from: (angle, distance).
DISTRACTOR_SOUNDS = Path(__file__).with_name("distractors.txt").read_text(encoding="ascii").split()
DISTRACTOR_PLACES = ((0, 64), (90, 160), (225, 160))


def record_bank(engine: Engine) -> list[np.ndarray]:
    """Record the distractor sounds, each from a few places: float32 (samples, 2), full scale is 1.

    Raises EngineError if all is silence, so the engine has no OpenAL.
    """
    engine.begin("map01", seed=1)
    engine.wait(SETTLE_TICS)
    bank = []
    for index in range(len(DISTRACTOR_SOUNDS)):
        for angle, distance in DISTRACTOR_PLACES:
            engine.command(f"give {sound_item(f'other{index}', angle, distance)}")
            pieces: list[np.ndarray] = []
            while len(pieces) < 7 or (len(pieces) < 60 and np.sqrt(np.mean(pieces[-1] ** 2)) >= QUIET / 32768):
                pieces.append(engine.tic().pcm.astype(np.float32) / 32768)
            engine.wait(75 - len(pieces))  # the noise maker is gone by then
            sound = np.concatenate(pieces)
            if np.abs(sound).max() * 32768 > LOUD:
                bank.append(sound)
    if not bank:
        raise EngineError("the game engine gives only silence, so it has no OpenAL: install it with `pip install cyal`")
    return bank


def mix(
    raw: np.ndarray, onset: int | None, snr: float, bank: list[np.ndarray], rng: Generator, hidden: float | None = None
) -> tuple[np.ndarray, float]:
    """Mix distractors and noise under a recorded event; returns int16 PCM and the signal-to-noise ratio.

    The ratio (dB) is that of the event to everything else over one second from its onset. Distractors are
    scaled to reach `snr`; without any it is what the noise leaves. With `hidden` the event is then turned
    down until its clearest tenth of a second is at that ratio. Clips without a sounding event (onset None)
    draw exactly the same, with nothing for the event; their ratio is NaN.
    """
    samples = len(raw)
    start = (int(rng.integers(*ONSET_TICS)) if onset is None else onset) * SAMPLES_PER_TIC
    window = slice(start, min(start + WINDOW_TICS * SAMPLES_PER_TIC, samples))
    level = 10 ** (rng.uniform(*LEVEL_DB) / 20)
    noise = level * 10 ** (-rng.uniform(*NOISE_DB) / 20)
    other = rng.normal(0, noise, (samples, 2)).astype(np.float32)
    count = int(rng.choice(len(DISTRACTORS), p=DISTRACTORS))
    sounds = np.zeros((samples, 2), np.float32)
    for number in range(count):
        sound = bank[rng.integers(len(bank))]
        # The first one overlaps the event, so that the ratio is one of two sounds.
        near = (start - 0.2 * SAMPLE_RATE, start + 0.3 * SAMPLE_RATE)
        low, high = near if number == 0 else (0, samples * 0.8)
        at = int(np.clip(rng.uniform(low, high), 0, samples - 1))
        piece = sound[: samples - at]
        sounds[at : at + len(piece)] += piece * 10 ** (rng.uniform(-8, 0) / 20) / _rms(sound)
    if count:
        wanted = (level * 10 ** (-snr / 20)) ** 2 - _rms(other[window]) ** 2
        other += sounds * np.sqrt(max(wanted, 0.0)) / _rms(sounds[window])
    event, ratio = raw.astype(np.float32) / 32768, float("nan")
    if onset is not None:
        event *= level / _rms(event[window])
        if hidden is not None:
            event *= 10 ** ((hidden - _clearest(event, other)) / 20)
        ratio = 20 * float(np.log10(_rms(event[window]) / _rms(other[window])))
    both = event + other
    both *= min(1.0, 0.98 / float(np.abs(both).max()))
    return np.round(both * 32767).astype(np.int16), ratio


def _clearest(event: np.ndarray, other: np.ndarray) -> float:
    """Highest ratio (dB) of event to other over tenths of a second."""
    step = SAMPLE_RATE // 10
    starts = range(0, len(event) - step + 1, step // 2)
    return max(20 * float(np.log10(_rms(event[i : i + step]) / _rms(other[i : i + step]))) for i in starts)


def _rms(sound: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))), 1e-9)
