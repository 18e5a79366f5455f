"""Fetch the clips of VGGSound or Kinetics-Sounds that are missing, by yt-dlp: an extra, used by nothing else here.

    python -m mmtlib.data.fetch --source vggsound --annotations vggsound.csv --media FOLDER --section

One clip after the other, slowly, into the names that stage `download` looks for. What exists is left alone, what
fails is written to fetch_failed.csv with yt-dlp's last line and not tried again without --retry. Whether you may
fetch a video is between you, its author and the site.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from mmtlib.data.sources.kinetics_sounds import KINETICS_LISTS, kinetics_sounds
from mmtlib.data.sources.listing import list_media
from mmtlib.data.sources.vggsound import vggsound
from mmtlib.files import write_text

SOURCES = {"vggsound": vggsound, "kinetics-sounds": kinetics_sounds}
ARCHIVE, FAILED = "fetch_archive.txt", "fetch_failed.csv"  # both in the media folder
FAILURES_IN_A_ROW = 20  # then it is not the videos: no network, or the site has had enough


class FetchError(RuntimeError):
    """Fetching cannot begin or go on; the text is one sentence with the remedy."""


def command(clip_id: str, lasts: float, *, section: bool) -> tuple[list[str], str]:
    """What is asked of yt-dlp for a clip, `<id>_<start>[_<end>]`, and the name of the file that comes of it.

    `section`: only the clip's seconds, cut exactly, under its official name; else the whole video as `<id>.mp4`.
    Raises FetchError for an id that YouTube would not give.
    """
    parts = re.fullmatch(r"([A-Za-z0-9_-]{11})_([0-9]{6})(_[0-9]{6})?", clip_id)
    if not parts:
        raise FetchError(f"clip_id {clip_id!r} does not begin with a YouTube id and six digits; mend the annotations.")
    video, start = parts[1], int(parts[2])
    name = clip_id if section else video
    asked = [f"--output={name}.%(ext)s", "--remux-video=mp4", "--format-sort=res:360,vcodec:h264,acodec:aac"]
    if section:  # cut where the annotation says, not at the key frame before
        asked += [f"--download-sections=*{start}-{start + lasts:g}", "--force-keyframes-at-cuts"]
    return [*asked, "--", f"https://www.youtube.com/watch?v={video}"], f"{name}.mp4"


def fetch(
    clips: pd.DataFrame, media: Path, options: list[str], *, section: bool, sleep: float, limit: int | None, retry: bool
) -> dict[str, str]:
    """Fetch clips (columns clip_id and lasts, seconds) into `media`; return those that failed, now or earlier.

    `options` go to yt-dlp as they are; `sleep` seconds pass between two clips. The result is clip_id -> reason, as in
    FAILED. Raises FetchError where yt-dlp (or ffmpeg, which cuts) is absent or refuses its options, and after
    FAILURES_IN_A_ROW.
    """
    # The programs of this environment are found even if it is not activated.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])
    for program in ("yt-dlp", "ffmpeg") if section else ("yt-dlp",):
        if shutil.which(program, path=path) is None:
            raise FetchError(
                f"{program} is not installed; yt-dlp comes with the extra `fetch`, ffmpeg with the system."
            )
    record = media / FAILED
    failed: dict[str, str] = {}
    if record.exists():
        failed = pd.read_csv(record, dtype=str, keep_default_na=False).set_index("clip_id")["reason"].to_dict()
    call = [shutil.which("yt-dlp", path=path), "--ignore-config", "--no-playlist", "--no-progress", "--no-warnings"]
    # The archive keeps a video whose file was moved away from being fetched again; --retry overrules it.
    call += options if retry else [*options, f"--download-archive={ARCHIVE}"]
    wanted = (clips if retry else clips[~clips["clip_id"].isin(failed.keys())]).head(limit)
    in_a_row = 0
    for number, (clip_id, lasts) in enumerate(zip(wanted["clip_id"], wanted["lasts"], strict=True), start=1):
        asked, name = command(clip_id, lasts, section=section)
        reason = ""
        if not (media / name).exists():  # another clip may have brought the whole video
            time.sleep(sleep if number > 1 else 0)
            done = subprocess.run([*call, *asked], cwd=media, capture_output=True, text=True, errors="replace")
            last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            if done.returncode == 2:  # a wrong option, not a video
                raise FetchError(f"yt-dlp refused what it was asked ({last}); correct the options, or update it.")
            if done.returncode or not (media / name).exists():
                reason = last
        was = failed.pop(clip_id, "")
        failed |= {clip_id: reason} if reason else {}
        if reason or was:
            write_text(record, pd.DataFrame(failed.items(), columns=["clip_id", "reason"]).to_csv(index=False))
        print(f"{number}/{len(wanted)} {clip_id}: {reason or 'there'}", flush=True)
        in_a_row = in_a_row + 1 if reason else 0
        if in_a_row == FAILURES_IN_A_ROW:
            raise FetchError(f"{in_a_row} clips in a row failed, the last with {reason!r}; wait, then use --retry.")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, fetch, return the exit status: 0, 1 (said in a sentence) or 130 (interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m mmtlib.data.fetch", description="Fetch missing clips by yt-dlp.")
    parser.add_argument("--source", choices=SOURCES, required=True)
    parser.add_argument("--annotations", type=Path, required=True, help="the official CSV, or the folder of them")
    parser.add_argument("--class-list", choices=KINETICS_LISTS, help="for kinetics-sounds")
    parser.add_argument("--media", type=Path, required=True, help="folder that gets the clips; made if need be")
    parser.add_argument("--limit", type=int, help="try so many clips at most")
    parser.add_argument("--rate", default="1M", help="bytes a second at most (1M)")
    parser.add_argument("--sleep", type=float, default=5.0, help="seconds between two requests, and two clips (5)")
    parser.add_argument("--cookies", type=Path, help="your cookies, a Netscape file, which yt-dlp also writes to")
    parser.add_argument("--section", action="store_true", help="fetch the clip's seconds alone (needs ffmpeg)")
    parser.add_argument("--retry", action="store_true", help=f"try those of {FAILED} again")
    given = parser.parse_args(arguments)
    try:
        if given.cookies and not given.cookies.is_file():
            raise FetchError(f"--cookies: {given.cookies} does not exist; give a file, or leave it out.")
        given.media.mkdir(parents=True, exist_ok=True)
        there = list_media(given.media)
        clips = SOURCES[given.source](given.annotations, there, class_list=given.class_list, val_share=0.0).clips
        options = [f"--limit-rate={given.rate}", f"--sleep-requests={given.sleep:g}"]
        options += [f"--cookies={given.cookies.resolve()}"] if given.cookies else []
        missing = clips[~clips["path"].isin(there)]
        print(f"{len(missing)} of {len(clips)} clips are missing", flush=True)
        how = {name: getattr(given, name) for name in ("section", "sleep", "limit", "retry")}
        failed = fetch(missing, given.media, options, **how)
    except (FetchError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{len(failed)} clips have failed, now or earlier: {FAILED} in the media folder says why")
    return 0


if __name__ == "__main__":
    sys.exit(main())
