"""The commands of docs/fetch.md, run with small scripts in the place of `mmt` and yt-dlp."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from mmtlib.config import ROOT
from mmtlib.data.sources.survey import survey

PAGE = (ROOT / "docs/fetch.md").read_text()
COMMANDS = re.search(r"```bash\n(.*?)```", PAGE, re.DOTALL)[1]
KINETICS = {"STUDY=vggsound": "STUDY=kinetics-sounds", ".%(ext)s'": "_%(section_end)06d.%(ext)s'"}
URL = "https://www.youtube.com/watch?v="


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the page's commands on a set of which all is missing but a clip; what yt-dlp was given, and the URLs."""
    python = shlex.quote(sys.executable)  # its folder may have a space, which the first line of a script cannot
    for name in ("mmt", "yt-dlp"):
        says = "import json, sys; print(json.dumps(sys.argv[1:]))"
        (tmp_path / name).write_text(f"#!/bin/sh\nexec {python} -c '{says}' \"$@\"\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def run(source, annotations, there, commands, **options):
        (tmp_path / "media").mkdir()
        (tmp_path / "media" / there).touch()
        found = survey(source, annotations, tmp_path / "media", workers=1, **options)
        (tmp_path / f"data/{source}/clips").mkdir(parents=True)
        found.problems.to_csv(tmp_path / f"data/{source}/clips/problems.csv", index=False)
        done = subprocess.run(["bash", "-euc", commands], cwd=tmp_path, capture_output=True, text=True, check=True)
        first, second = map(json.loads, done.stdout.splitlines())
        assert first == ["download", "--params", f"params/{source}.yaml"]
        return second, (tmp_path / "wanted.txt").read_text().splitlines()

    return run


def test_missing_clips_of_vggsound_are_asked_for_by_their_seconds(call, tmp_path):
    videos = ["-0123456_ab", "abcdefghijk", "_b-defghijk"]
    rows = [f'{video},{30 * place},"playing bass drum",train\n' for place, video in enumerate(videos)]
    (tmp_path / "vggsound.csv").write_text("".join(rows))
    given, wanted = call("vggsound", tmp_path / "vggsound.csv", "abcdefghijk_000030.mp4", COMMANDS)
    assert wanted == [f"{URL}-0123456_ab&start=0&end=10", f"{URL}_b-defghijk&start=60&end=70"]
    assert given[:4] == ["--batch-file", "wanted.txt", "--paths", "data/raw/vggsound/clips"]


def test_those_of_kinetics_sounds_keep_both_times(call, tmp_path):
    for name, video in (("train", "abcdefghijk"), ("val", "-0123456_ab"), ("test", "lmnopqrstuv")):
        (tmp_path / f"{name}.csv").write_text(f"label,youtube_id,time_start,time_end\nbowling,{video},7,17\n")
    commands = COMMANDS
    for old, new in KINETICS.items():
        assert old in commands
        commands = commands.replace(old, new)
    there = "abcdefghijk_000007_000017.mp4"
    given, wanted = call("kinetics-sounds", tmp_path, there, commands, class_list="kinetics-sounds-31")
    assert wanted == [f"{URL}-0123456_ab&start=7&end=17"]
    assert "%(id)s_%(section_start)06d_%(section_end)06d.%(ext)s" in given


def test_what_is_gone_is_left_out(tmp_path):
    (line,) = re.findall(r"```bash\n\s*(sed -nE .*?)```", PAGE, re.DOTALL)
    reasons = {"abcdefghijk": "Video unavailable", "-0123456_ab": "Sign in", "lmnopqrstuv": "Private video. Sign in"}
    text = "".join(f"ERROR: [youtube] {video}: {reason}\n" for video, reason in reasons.items())
    (tmp_path / "failed.txt").write_text(text)
    (tmp_path / "wanted.txt").write_text("".join(f"{URL}{video}&start=7&end=17\n" for video in reasons))
    subprocess.run(["bash", "-euc", line.replace("\n", " ")], cwd=tmp_path, check=True)
    assert (tmp_path / "rest.txt").read_text() == f"{URL}-0123456_ab&start=7&end=17\n"


def test_yt_dlp_itself_understands_what_it_is_asked(call, tmp_path):
    """Where yt-dlp is installed: its own parser takes every option, and names the file, without a request."""
    yt_dlp = pytest.importorskip("yt_dlp")
    (tmp_path / "vggsound.csv").write_text('-0123456_ab,30,"playing bass drum",train\n')
    given, _ = call("vggsound", tmp_path / "vggsound.csv", "x.mp4", COMMANDS)
    given[1] = os.devnull
    options = yt_dlp.parse_options(["--ignore-config", *given]).ydl_opts
    about = {"id": "-0123456_ab", "start_time": 30.0, "end_time": 40.0, "ext": "mp4"}
    assert list(options["download_ranges"](about, None)) == [{"start_time": 30.0, "end_time": 40.0}]
    assert options["force_keyframes_at_cuts"]
    with yt_dlp.YoutubeDL({"outtmpl": options["outtmpl"], "paths": {"home": "m"}}) as downloader:
        assert downloader.prepare_filename(about | {"section_start": 30.0}) == "m/-0123456_ab_000030.mp4"
