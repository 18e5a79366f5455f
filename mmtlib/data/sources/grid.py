"""GRID: talkers who each say 1,000 sentences of six words on camera, 3 s each; four of the words are heads."""

import hashlib
import re
from pathlib import Path

from mmtlib.data.manifest import ManifestError
from mmtlib.data.sources.listing import VIDEO, Listing, SourceError, in_folds, named

FOLDS = 5
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "colour": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},  # no w: its name is too long
    "digit": dict(zip("z123456789", _DIGITS, strict=True)),
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}
"""Part of the sentence -> its character in a file's name -> the word."""
HEADS = ["command", "colour", "letter", "digit"]
_SENTENCE = "".join(f"(?P<{part}>[{''.join(words)}])" for part, words in WORDS.items())


def grid(annotations: Path | None, media: list[str]) -> Listing:
    """The videos named by their sentences (`bbaf2n`: bin blue at f two now) anywhere below a talker's folder, `s1`.

    clip_id is `s1_bbaf2n`, and its own group. Our reading of the folds, as none are official: talkers, by number,
    are dealt round into five; of fewer than five talkers the clips are, in the order of the sha256 of their ids.
    Audio is taken from the videos, files of audio beside them are ignored. `annotations`, if given, is a folder of
    .align files, whose words are compared with the names. Raises SourceError where no video or .align file is named so,
    ManifestError for an .align file of other words.
    """
    videos = [file for file in media if file.rpartition(".")[2].lower() in VIDEO]
    clips = named(videos, rf"(?:.*/)?s(?P<talker>[0-9]{{1,2}})/(?:[^/]+/)*(?P<said>{_SENTENCE})\.\w+")
    clips["talker"] = clips.talker.astype(int)
    clips["clip_id"] = clips["group"] = "s" + clips.talker.astype(str) + "_" + clips.said
    clips = clips.drop_duplicates("clip_id").assign(**{head: clips[head].map(WORDS[head]) for head in HEADS})
    clips["label"] = clips[HEADS[0]].str.cat(clips[HEADS[1:]], " ")
    dealt, order = clips.talker, sorted(set(clips.talker))
    if len(order) < FOLDS:
        dealt, order = clips.clip_id, sorted(clips.clip_id, key=lambda name: hashlib.sha256(name.encode()).digest())
    clips["fold"] = dealt.map({one: index % FOLDS + 1 for index, one in enumerate(order)})
    if annotations is not None:
        _compare(annotations)
    heads = {head: list(WORDS[head].values()) for head in HEADS}
    return in_folds(clips, videos, None, name="grid", class_list="grid", heads=heads)


def sentence(name: str) -> dict[str, str] | None:
    """Part -> word of a file's name without extension; None where it is no sentence."""
    found = re.fullmatch(_SENTENCE, name)
    return found and {part: WORDS[part][letter] for part, letter in found.groupdict().items()}


def _compare(folder: Path) -> None:
    """Raise where an .align file below a folder has other words than its name."""
    files = [path for path in sorted(folder.rglob("*.align")) if sentence(path.stem)]
    if not files:
        raise SourceError(f"download.annotations: {folder} has no .align file of a sentence; leave annotations out.")
    for path in files:
        lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        words = [line[-1] for line in lines if line and line[-1] not in ("sil", "sp")]
        if words != (said := list(sentence(path.stem).values())):
            found = " ".join(words)[:80]
            raise ManifestError(f"{path}: the words are {found!r}, its name says {' '.join(said)!r}; correct one.")
