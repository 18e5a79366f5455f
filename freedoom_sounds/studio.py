"""One clip of Freedoom-Sounds: drawn, played, checked, mixed and written."""

import functools
import signal
from collections import Counter
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np

from freedoom_sounds import classes, sound
from freedoom_sounds.classes import GAME, ClipSpec, EngineError, Failed, GenerationError, split_levels
from freedoom_sounds.engine import SAMPLE_RATE, SAMPLES_PER_TIC, TICS_PER_SECOND, Engine, read_level
from freedoom_sounds.files import write_clip
from freedoom_sounds.scripts import draw_pair, plan, play, verify

TRIES = 60  # for each clip; one that comes to nothing is soon over


class Studio:
    """An engine and its bank of sounds; makes one clip after the other. `close` ends it.

    Raises EngineError if there is no engine, or one without audio.
    """

    def __init__(self) -> None:
        noises = {label: event.sound for label, event in classes.CLASSES.items() if event.sound}
        noises |= {f"other{index}": (name, 70, 1) for index, name in enumerate(sound.DISTRACTOR_SOUNDS)}
        self._engine = Engine(GAME, noises)
        self.close = self._engine.close
        self.bank = sound.record_bank(self._engine)

    def render(self, spec: ClipSpec) -> tuple[np.ndarray, np.ndarray, dict]:
        """Make one clip: frames uint8 (T, H, W, 3), PCM int16 (samples, 2), and what is true of it.

        Raises GenerationError if no try worked, EngineError if the engine ended.
        """
        rng = np.random.default_rng(spec.seed)
        kind, pair = classes.KINDS[classes.ROWS[spec.label].kind], classes.PAIRS.get(spec.label)
        alone = spec.class_list != classes.NAME and kind.audible > 0 and pair is None  # seen or heard, not both
        visible = bool(rng.random() < (classes.SEEN if alone else kind.visible))
        audible = bool(rng.random() < (0 if alone else kind.audible)) or not visible
        snr, hidden = float(rng.uniform(*kind.snr)), float(rng.uniform(*sound.HIDDEN_SNR))
        reasons: Counter[str] = Counter()
        if pair is None:
            frames, raw, onset, level = self._made(spec, spec.label, visible, reasons)
            told = {}
        else:  # the image of one play and the sound of another, in both classes of a pair
            seen, heard, begins, at = draw_pair(pair, rng)
            frames, _, shown, level = self._made(spec, seen, True, reasons, begins)
            _, raw, sounds, _ = self._made(spec, heard, False, reasons, at)
            onset = at + shown - begins  # as long after `at` as the event's own sound is after `begins`
            raw = moved(raw, (onset - sounds) * SAMPLES_PER_TIC)
            told = {"seen": seen, "heard": heard, "apart_s": round((at - begins) / TICS_PER_SECOND, 3)}
        pcm, ratio = sound.mix(raw, onset, snr, self.bank, rng, hidden=None if audible else hidden)
        facts = {
            "scene": f"{GAME}/{level}",
            "audible": onset is not None and ratio > sound.AUDIBLE_SNR,
            "visible": visible,
            "snr_db": None if onset is None else round(ratio, 2),
            "onset_s": None if onset is None else round(onset / TICS_PER_SECOND, 3),
            "tries": reasons.total() + 1,
            "failed": dict(reasons),
        }
        return frames, pcm, facts | told

    def _made(
        self, spec: ClipSpec, label: str, visible: bool, reasons: Counter[str], begins: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, int | None, str]:
        """Try until an event comes out as planned: frames, PCM, first tic of its sound, level; counts the `reasons`."""
        for number in range(reasons.total(), TRIES):
            rng = np.random.default_rng([spec.seed, number])
            name = str(rng.choice(split_levels(spec.split)))
            try:
                script = plan(label, visible, name, read_level(GAME, name), rng, begins)
                tics = play(self._engine, script, seed=int(rng.integers(1, 2**31)))
                onset = verify(label, visible, script, tics)
                return np.stack([tic.frame for tic in tics]), np.concatenate([tic.pcm for tic in tics]), onset, name
            except Failed as reason:
                reasons[str(reason)] += 1
        mostly = reasons.most_common(1)[0][0]
        raise GenerationError(f"{spec}: no clip in {TRIES} tries (mostly: {mostly}); choose another seed")


def moved(raw: np.ndarray, samples: int) -> np.ndarray:
    """Sound, later by so many samples (earlier where it is negative), with silence in the place of what is missing."""
    padded = np.pad(raw, ((max(samples, 0), max(-samples, 0)), (0, 0)))
    return padded[max(-samples, 0) :][: len(raw)]


@functools.cache
def _studio() -> Studio:
    """The one of this process of a pool, closed where it ends: by itself once it is not wanted, not by a signal."""
    studio = Studio()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Finalize(None, studio.close, exitpriority=1)  # atexit does not run there
    return studio


def make_clip(out: Path, key: str, spec: ClipSpec) -> dict:
    """Write a clip below `out` and return its record; raises like Studio and its render."""
    try:
        frames, pcm, facts = _studio().render(spec)
    except EngineError:
        _studio.cache_clear()  # the next try gets another engine
        raise
    path = f"clips/{spec.clip_id}.mp4"
    write_clip(out / path, frames, TICS_PER_SECOND, pcm, SAMPLE_RATE)
    record = {"clip_id": spec.clip_id, "path": path, "label": spec.label, "split": spec.split, "key": key}
    return record | facts
