"""Fetching, with a small script in the place of yt-dlp: it notes its arguments, then writes a file or fails."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pandas as pd
import pytest

from mmtlib.config import ROOT
from mmtlib.data import fetch
from mmtlib.data.fetch import FetchError, command, main

STAND_IN = f"""#!{sys.executable}
import json, pathlib, sys, time
given = sys.argv[1:]
with open({{log!r}}, "a") as log:
    log.write(json.dumps([str(pathlib.Path.cwd()), *given]) + "\\n")
video = given[-1][-11:]
if "GONE" in video:
    print("[youtube] looking", file=sys.stderr)
    sys.exit("ERROR: [youtube] " + video + ": Video unavailable, \\"private\\"")
if "QUIET" in video:
    print("[download] " + video + " has already been recorded in the archive")
    sys.exit(0)
if "--limit-rate=fast" in given:
    print("yt-dlp: error: invalid rate limit specified", file=sys.stderr)
    sys.exit(2)
if "SLOW" in video:
    print("slow", flush=True)
    time.sleep(60)
[output] = [word.removeprefix("--output=") for word in given if word.startswith("--output=")]
pathlib.Path(output.replace("%(ext)s", "mp4")).write_bytes(b"clip")
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An annotation of four videos, a media folder, and the stand-ins first on the PATH."""
    programs, log = tmp_path / "programs", tmp_path / "log"
    programs.mkdir()
    for name in ("yt-dlp", "ffmpeg"):
        (programs / name).write_text(STAND_IN.replace("{log!r}", repr(str(log))))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    write(tmp_path, "-0123456_ab", "12345GONE12", "abcdefghijk", "QUIETQUIETQ")
    return tmp_path


def write(site, *videos):
    rows = [f'{video},{30 + number},"playing bass drum",train\n' for number, video in enumerate(videos)]
    (site / "vggsound.csv").write_text("".join(rows))


def run(site, *options):
    """Run the command line; return its status and what the stand-in was given in this call."""
    log = site / "log"
    log.unlink(missing_ok=True)
    given = ["--source=vggsound", f"--annotations={site / 'vggsound.csv'}", f"--media={site / 'media'}", "--sleep=0"]
    status = main([*given, *options])
    return status, [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def failed(site):
    return pd.read_csv(site / "media" / fetch.FAILED).set_index("clip_id")["reason"].to_dict()


def test_clips_are_cut_under_their_names_and_failures_listed_and_left_alone(site, capsys):
    status, calls = run(site, "--section", "--rate=500K")
    assert status == 0
    media = site / "media"
    assert {file.name for file in media.glob("*.mp4")} == {"-0123456_ab_000030.mp4", "abcdefghijk_000032.mp4"}
    folder, *words = calls[0]
    assert folder == str(media)
    assert words[-2:] == ["--", "https://www.youtube.com/watch?v=-0123456_ab"]
    wanted = {"--ignore-config", "--limit-rate=500K", "--sleep-requests=0", f"--download-archive={fetch.ARCHIVE}"}
    wanted |= {"--output=-0123456_ab_000030.%(ext)s", "--download-sections=*30-40", "--force-keyframes-at-cuts"}
    assert wanted <= set(words)
    assert not [word for word in words if "cookies" in word]
    assert len(calls) == 4
    assert failed(site) == {
        "12345GONE12_000031": 'ERROR: [youtube] 12345GONE12: Video unavailable, "private"',
        "QUIETQUIETQ_000033": "[download] QUIETQUIETQ has already been recorded in the archive",
    }
    assert "4 of 4 clips are missing" in capsys.readouterr().out

    assert run(site, "--section") == (0, [])  # nothing is asked for twice
    (media / "abcdefghijk_000032.mp4").unlink()
    status, calls = run(site, "--section", "--retry", "--limit=2")
    assert [call[-1][-11:] for call in calls] == ["12345GONE12", "abcdefghijk"]
    assert not [word for call in calls for word in call if "archive" in word]


def test_what_comes_on_a_retry_leaves_the_list(site):
    run(site)
    (site / "media" / "QUIETQUIETQ.mp4").touch()  # by the user's hand
    assert len(failed(site)) == 2
    listed = pd.DataFrame({"clip_id": ["QUIETQUIETQ_000033"], "lasts": [10.0]})
    how = {"section": False, "sleep": 0.0, "limit": None, "retry": True}
    assert fetch.fetch(listed, site / "media", [], **how).keys() == {"12345GONE12_000031"} == failed(site).keys()


def test_whole_videos_are_fetched_once_for_all_their_clips(site):
    (site / "vggsound.csv").write_text('abcdefghijk,1,"playing harp",test\nabcdefghijk,70,"playing harp",test\n')
    status, calls = run(site)
    assert (status, len(calls)) == (0, 1)
    assert "--output=abcdefghijk.%(ext)s" in calls[0]
    assert not [word for word in calls[0] if "section" in word or "keyframes" in word]
    assert run(site) == (0, [])
    assert not (site / "media" / fetch.FAILED).exists()


def test_cookies_are_given_by_the_user_alone(site, capsys):
    assert run(site, "--cookies=nowhere.txt") == (1, [])
    assert "--cookies: nowhere.txt does not exist" in capsys.readouterr().err
    (site / "jar.txt").touch()
    _, calls = run(site, f"--cookies={site / 'jar.txt'}", "--limit=1")
    assert f"--cookies={site / 'jar.txt'}" in calls[0]


def test_kinetics_clips_keep_both_times_in_their_names(site):
    folder = site / "kinetics"
    folder.mkdir()
    for name, video in (("train", "abcdefghijk"), ("val", "-0123456_ab")):
        (folder / f"{name}.csv").write_text(f"label,youtube_id,time_start,time_end\nbowling,{video},7,17\n")
    given = ["--source=kinetics-sounds", f"--annotations={folder}", f"--media={site / 'media'}", "--sleep=0"]
    assert main([*given, "--section", "--class-list=kinetics-sounds-31"]) == 0
    names = {file.name for file in (site / "media").glob("*.mp4")}
    assert names == {"abcdefghijk_000007_000017.mp4", "-0123456_ab_000007_000017.mp4"}
    assert main(given) == 1  # which list is not guessed


@pytest.mark.parametrize(
    "video", ["--exec=ab;rm", "abc/../../x", "abcdefghij", "abcdefghijk\n", "abcdefghi'k", "ábcdefghijk"]
)
def test_an_id_that_is_none_never_reaches_a_command_line(site, video, capsys):
    with pytest.raises(FetchError, match="does not begin with a YouTube id"):
        command(f"{video}_000030", 10.0, section=True)
    (site / "vggsound.csv").write_text(f'"{video}",30,"playing bass drum",train\n')
    assert run(site) == (1, [])
    assert capsys.readouterr().err.count("\n") == 1


def test_many_failures_in_a_row_stop_it_and_a_refused_option_at_once(site, capsys, monkeypatch):
    write(site, *[f"GONE{number:07d}" for number in range(5)])
    monkeypatch.setattr(fetch, "FAILURES_IN_A_ROW", 3)
    status, calls = run(site)
    assert (status, len(calls), len(failed(site))) == (1, 3, 3)
    assert "3 clips in a row failed, the last with 'ERROR: [youtube] GONE0000002" in capsys.readouterr().err
    write(site, "abcdefghijk")
    status, calls = run(site, "--rate=fast")
    assert (status, len(calls), len(failed(site))) == (1, 1, 3)
    assert "invalid rate limit" in capsys.readouterr().err


@pytest.mark.parametrize("absent", ["yt-dlp", "ffmpeg"])
def test_a_program_that_is_absent_is_named(site, absent, capsys, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "which", lambda name, path: None if name == absent else name)
    assert run(site, "--section") == (1, [])
    assert capsys.readouterr().err.startswith(f"{absent} is not installed")


def test_ctrl_c_ends_it_with_one_line_and_keeps_the_list(site):
    write(site, "12345GONE12", "SLOWSLOWSLO")
    words = ["-u", "-m", "mmtlib.data.fetch", "--source=vggsound", "--annotations=vggsound.csv", "--media=media"]
    process = subprocess.Popen(
        [sys.executable, *words, "--sleep=0"],
        cwd=site,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored where pytest is a background job
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = site / "log"
    while not log.exists() or log.read_text().count("\n") < 2:  # the slow one has begun
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted; the same command goes on from here\n")
    assert failed(site).keys() == {"12345GONE12_000030"}
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nothing of it is left


def test_yt_dlp_itself_understands_what_it_is_asked(tmp_path):
    """Where yt-dlp is installed: its own parser takes every option, without a request to anyone."""
    yt_dlp = pytest.importorskip("yt_dlp")
    asked, _ = command("-0123456_ab_000030", 10.0, section=True)
    parsed = yt_dlp.parse_options(["--ignore-config", "--limit-rate=1M", "--sleep-requests=5", *asked])
    assert parsed.urls == ["https://www.youtube.com/watch?v=-0123456_ab"]
    assert list(parsed.ydl_opts["download_ranges"]({}, None)) == [{"start_time": 30, "end_time": 40}]
    assert parsed.ydl_opts["force_keyframes_at_cuts"]
    assert parsed.ydl_opts["outtmpl"]["default"] == "-0123456_ab_000030.%(ext)s"
