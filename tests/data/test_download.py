"""The sources by their names."""

import pandas as pd
import pytest

from mmtlib.data import download as module
from mmtlib.data.download import SourceError, download


def test_the_source_is_called_with_what_it_needs(tmp_path, monkeypatch):
    calls = []

    def made(out, **values):
        calls.append((out, values))
        return pd.DataFrame({"clip_id": ["c0"]})

    monkeypatch.setitem(module.SOURCES, "made-up", made)
    values = {"seed": 3, "clips_per_class": {"train": 1}, "workers": 2}
    manifest = download(tmp_path, source="made-up", **values)
    assert calls == [(tmp_path, values)]
    assert list(manifest.clip_id) == ["c0"]


def test_an_unknown_source_is_named_beside_the_known_ones(tmp_path):
    with pytest.raises(SourceError, match=r"no data set is called 'vgg'; use freedoom-sounds\.$"):
        download(tmp_path, source="vgg", seed=0, clips_per_class={})


def test_the_embedded_set_is_there():
    assert callable(module.SOURCES["freedoom-sounds"])
