"""What a chosen exposure looks like: its CTF fit, and the micrograph, small."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import TYPE_CHECKING

from bokeh.models import Div

from dspa.app import frame
from dspa.app.micrograph_view import Views
from dspa.data.errors import InputError
from dspa.io.micrographs import rows_turned
from dspa.io.picture import image

if TYPE_CHECKING:
    import xarray as xr

    from dspa.project.project import Project

WIDTH = 350


class Pictures:
    """The pictures beside the scatter.

    Parameters
    ----------
    project : Project
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.views = Views()
        self.fits: dict[str, Path] = {}
        self.root = Div(width=WIDTH, name="pictures", text="click on a point or a row")

    def open(self, job: str, table: xr.Dataset) -> None:
        """Take the micrographs of a job, and find the pictures of their CTF fits.

        Parameters
        ----------
        job : str
        table : Dataset
            Micrographs.
        """
        self.table = table
        self.fits = {}
        level, seen = [int(job[1:])], set()
        while level and not self.fits:
            jobs = [self.project.job(number) for number in level]
            for each in jobs:
                for path in (each.folder / "ctf").glob("*_*.png"):
                    self.fits[path.stem.partition("_")[2]] = path
            seen |= set(level)
            level = sorted({number for each in jobs for number in each.parents} - seen)
        self.root.text = "click on a point or a row"

    def show(self, row: int) -> None:
        """Show one micrograph.

        Parameters
        ----------
        row : int
        """
        name = str(self.table["micrograph_name"].values[row])
        parts = [f"<b>{html.escape(Path(name).name)}</b>"]
        fit = self.fits.get(Path(name).stem)
        try:
            if fit is not None:
                parts.append(_embedded(fit.read_bytes(), "CTF fit"))
            path, turned = str(self.table["path"].values[row]), bool(rows_turned(self.table)[row])
            small = self.views.ask(path, turned=turned).result()
            pixel = float(self.table["pixel_size"].values[int(self.table["optics"].values[row])])
            png = image(small.image, pixel_size=pixel * small.step, width=WIDTH)
            parts.append(_embedded(png, "micrograph"))
        except (InputError, OSError) as error:
            parts.append(f"<span style='color:{frame.REMOVED}'>{html.escape(str(error))}</span>")
        self.root.text = "<br>".join(parts)


def _embedded(png: bytes, what: str) -> str:
    data = base64.b64encode(png).decode()
    return f"<img alt='{what}' width={WIDTH} src='data:image/png;base64,{data}'>"
