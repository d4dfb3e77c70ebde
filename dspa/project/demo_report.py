"""The page of the demo: what was found, beside what is true."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.atomic import write_atomically
from dspa.geometry.rotation import view_direction
from dspa.geometry.symmetry import views_around
from dspa.io.micrographs import read_micrograph_image
from dspa.io.picture import Circles, angular_distribution, curves, image, montage, volume_slices
from dspa.io.rendering import volume_rendering
from dspa.io.star import read_star
from dspa.io.volumes import read_images
from dspa.ops.images.filter import low_pass
from dspa.ops.maps import sharpen
from dspa.project.figures import duration, line
from dspa.project.report import STYLE

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from dspa.ops.simulate.agreement import MapAgreement
    from dspa.project.job import Job

_RADIUS = 55.0  # A, of the circles around picks


@dataclass(frozen=True, eq=False)
class Findings:
    """What the demo compared.

    Attributes
    ----------
    agreement : MapAgreement
        Refined map and truth.
    picks, truth : Dataset
        Particles found and particles there.
    micrographs : Dataset
    refined : Dataset
        Particles with their refined poses.
    """

    agreement: MapAgreement
    picks: xr.Dataset
    truth: xr.Dataset
    micrographs: xr.Dataset
    refined: xr.Dataset


def write_demo_report(
    folder: Path, jobs: dict[str, Job], findings: Findings, *, headline: str
) -> Path:
    """Write ``report.html`` of a whole demo.

    Parameters
    ----------
    folder : Path
        The demo's folder.
    jobs : dict of str to Job
        By what they are for.
    findings : Findings
    headline : str
        The figures in one line.
    """
    hand = (
        "The map came out as the mirror image of the truth and was mirrored for the comparison; "
        if findings.agreement.alignment.mirrored
        else "The map came out in the hand of the truth, which is chance; "
    )
    figures = html.escape(headline.removeprefix("demo: "))
    parts = [
        f"<header><h1>dspa demo <small>{figures}</small></h1></header>",
        _section("Picks on a micrograph", [("green: picked; red: where the particles are, "
                 "drawn smaller", _picks(findings))]),
        _section("Class averages", _classes(jobs)),
        _section(
            "The map",
            [
                ("three sides of the map", volume_rendering(findings.agreement.aligned)),
                ("three sides of the truth", volume_rendering(_known(findings))),
                ("central slices of the map", _slices(findings, "map")),
                ("central slices of the truth", _slices(findings, "truth")),
            ],
            note=hand + "projections alone do not tell the hand.",
        ),
        _section(
            "Resolution and views",
            [
                ("Fourier shell correlation", _fsc(findings, jobs)),
                ("viewing directions of the particles", _views(findings)),
            ],
        ),
        _jobs_table(folder, jobs),
    ]  # fmt: skip
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>dspa demo</title>"
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = folder / "report.html"
    write_atomically(path, lambda stream: stream.write(page.encode()))
    return path


def _section(title: str, pictures: list[tuple[str, bytes]], *, note: str = "") -> str:
    shown = "".join(
        f"<figure><img alt='{html.escape(caption, quote=True)}' src='data:image/png;base64,"
        f"{base64.b64encode(png).decode()}'><figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, png in pictures
    )
    text = f"<p class=quiet>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{text}<div class=gallery>{shown}</div></section>"


def _picks(findings: Findings) -> bytes:
    """Draw the micrograph with the most particles, picks and truth on it."""
    table = findings.micrographs
    counts = np.bincount(findings.truth["micrograph"].values, minlength=table.sizes["micrograph"])
    best = int(np.argmax(counts))
    name = str(table["micrograph_name"].values[best])
    pixel_size = float(table["pixel_size"].values[0])
    pixels = low_pass(
        read_micrograph_image(str(table["path"].values[best])), 15.0, pixel_size=pixel_size
    )
    marks = []
    for dataset, radius, colour, label in (
        (findings.picks, _RADIUS, "#00e08a", "picked"),
        (findings.truth, 0.25 * _RADIUS, "#ff5555", "true"),
    ):
        names = [str(each) for each in dataset["micrograph_name"].values]
        if name in names:
            here = dataset["micrograph"].values == names.index(name)
            centres = dataset["coordinate"].values[here] / pixel_size
            marks.append(Circles(centres, radius / pixel_size, colour, label))
    return image(np.asarray(pixels), circles=marks, pixel_size=pixel_size)


def _classes(jobs: dict[str, Job]) -> list[tuple[str, bytes]]:
    shown = []
    for key, caption in (
        ("templates", "chosen of the blob picks: the templates"),
        ("class2d", "all classes of the template picks"),
        ("select2d", "chosen for the map"),
    ):
        path = jobs[key].output("classes") if key in jobs else None
        if path is not None and path.suffix == ".mrcs":
            shown.append((caption, montage(read_images(path).images)))
    return shown


def _known(findings: Findings) -> np.ndarray:
    """Return the truth, smoothed to what the map resolves."""
    agreement = findings.agreement
    size = agreement.pixel_size
    return np.asarray(sharpen.low_pass(agreement.truth, agreement.resolution, pixel_size=size))


def _slices(findings: Findings, which: str) -> bytes:
    agreement = findings.agreement
    density = agreement.aligned if which == "map" else _known(findings)
    return volume_slices(density, pixel_size=agreement.pixel_size)


def _fsc(findings: Findings, jobs: dict[str, Job]) -> bytes:
    """Draw the correlation with the truth beside what the half maps say of themselves."""
    agreement = findings.agreement
    shown = {"map against the truth": agreement.curve}
    path = jobs["refine"].output("fsc")
    for block in read_star(path) if path is not None else []:
        gold = block.columns.get("rlnFourierShellCorrelationCorrected")
        index = block.columns.get("rlnSpectralIndex")
        if gold is not None and index is not None and len(gold) > 1:
            curve = np.full(agreement.curve.size, np.nan)
            curve[0] = 1.0
            kept = index < curve.size
            curve[index[kept].astype(np.int64)] = gold[kept]
            shown["half maps, corrected for the mask"] = curve
    return curves(
        agreement.frequency,
        shown,
        ylabel="correlation",
        thresholds={"0.143": 0.143, "0.5": 0.5},
        resolution=True,
        ylim=(-0.1, 1.05),
    )


def _views(findings: Findings) -> bytes:
    views = views_around(view_direction(findings.refined["pose"].values), "D7")
    return angular_distribution(views, title="viewing directions, with their D7 mates")


def _jobs_table(folder: Path, jobs: dict[str, Job]) -> str:
    rows = []
    shown = {job.number: job for job in jobs.values()}
    for number in sorted(shown):
        job = shown[number]
        record = job.read()
        link = (job.folder / "report.html").relative_to(folder.absolute()).as_posix()
        rows.append(
            f"<tr><td><a href='{html.escape(link, quote=True)}'>{job.name}</a></td>"
            f"<td>{html.escape(record.stage)}</td><td>{duration(record.seconds)}</td>"
            f"<td>{html.escape(line(record.figures))}</td></tr>"
        )
    head = "<tr><th>job</th><th>stage</th><th>time</th><th>figures</th></tr>"
    return f"<section><h2>Jobs</h2><table>{head}{''.join(rows)}</table></section>"
