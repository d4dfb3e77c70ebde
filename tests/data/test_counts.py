"""Counts of things in sentences."""

import numpy as np
import pytest

from dspa.data.counts import counted, counted_of


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((1, "particle"), "1 particle"),
        ((0, "new particle"), "0 new particles"),
        ((np.int64(2000), "class"), "2000 classes"),
        ((2, "box"), "2 boxes"),
        ((1, "file is", "files are"), "1 file is"),
        ((2, "file is", "files are"), "2 files are"),
    ],
)
def test_counts_agree_with_their_nouns(words, sentence):
    assert counted(*words) == sentence


def test_parts_agree_with_their_verbs():
    verb = ("is", "are")
    assert counted_of(1, 5, "image", verb=verb) == "1 of 5 images is"
    assert counted_of(np.int64(2), 5, "image", verb=verb) == "2 of 5 images are"
    assert counted_of(1, 1, "image", verb=verb) == "1 of 1 image is"
