"""Export of maps and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.volumes import write_volume
from dspa.stages.export import STAGE, Params
from dspa.stages.stage import Context, check


def test_maps_are_copied_under_their_output(tmp_path: Path) -> None:
    """Every bit of them, and only where a map is meant."""
    density = np.random.default_rng(2).normal(size=(6, 6, 6)).astype("f4")
    source = tmp_path / "jobs" / "J004-mask" / "mask.mrc"
    write_volume(source, density, pixel_size=2.0, origin=(1.0, 2.0, 3.0))
    inputs = {"particles": source, "picks": None, "micrographs": None}

    def export(**params: Any) -> None:
        made = Params(**params)
        check(made)
        assert STAGE.admit is not None
        STAGE.admit(inputs, made)
        STAGE.run(Context(tmp_path, InlineRunner(tmp_path), Events(tmp_path, ())), inputs, made)

    out = tmp_path / "out" / "m.mrc"
    export(out=str(out))
    assert out.read_bytes() == source.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        export(out=str(out))
    export(out=str(out), overwrite=True)
    with pytest.raises(InputError, match=r"mask.mrc is a map: end OUT in .mrc or .map"):
        export(out=str(tmp_path / "m.star"))
    inputs["particles"] = None
    with pytest.raises(InputError, match=r"name the map with its output \(dspa export J9.volume"):
        export(out=str(tmp_path / "n.mrc"))
