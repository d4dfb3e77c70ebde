"""Records out of a file, wherever they lie; files that end too early."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io.record_reads import read_records


def test_records_come_in_the_order_asked_for(tmp_path, rng):
    stored = rng.integers(0, 256, (50, 12), np.uint8)
    path = tmp_path / "records"
    path.write_bytes(b"header!" + stored.tobytes())
    for indices in ([], [7], [3, 4, 5, 20, 49], [49, 0, 1, 0], list(range(50))):
        wanted = np.array(indices, np.int64)
        found = read_records(str(path), wanted, offset=7, record=12)
        np.testing.assert_array_equal(found, stored[wanted])


def test_a_file_that_ends_early_is_named(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(100))
    with pytest.raises(InputError, match="short: ends before its last image"):
        read_records(str(path), np.array([0, 10]), offset=0, record=12)
    with pytest.raises(InputError, match="absent: cannot be read"):
        read_records(str(tmp_path / "absent"), np.array([0]), offset=0, record=12)
