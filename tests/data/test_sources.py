"""What holds for every source alike."""

import pytest

from mmtlib.data import build_manifest
from mmtlib.data.sources.listing import SourceError


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no real data set is called 'freedoom-sounds'; use vggsound"):
        build_manifest("freedoom-sounds", None, tmp_path)
