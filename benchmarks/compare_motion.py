"""Hold corrected movies against the truth that `dspa simulate movies` left.

    python benchmarks/compare_motion.py SESSION MOTION MICROGRAPHS [SUFFIX]

SESSION is the folder of the simulating job, MOTION holds a STAR file for each movie as RELION or
dspa write it, MICROGRAPHS the sums, named as the movies and SUFFIX (such as _noDW). For each movie
it prints the mean residual of the motion, in A, at a grid of points, over the whole frame and over
its inner four fifths, and the Fourier ring correlation of the sum with the undamaged specimen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy import fft

from dspa.io.micrographs import read_micrograph_image, read_micrographs
from dspa.io.movie_truth import read_movie_truth
from dspa.io.star_motion import read_displacements

_RINGS = 10


def residuals(told: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Distances (frames, p) of displacements, what does not change over the frames left out."""
    error = told - true
    return np.linalg.norm(error - error.mean(axis=0), axis=-1)


def ring_correlation(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Correlate two images in rings up to Nyquist, away from their edges."""
    window = np.outer(*(np.hanning(n) for n in one.shape))
    a, b = (fft.rfft2((each - each.mean()) * window) for each in (one, two))
    ky, kx = fft.fftfreq(one.shape[0])[:, None], fft.rfftfreq(one.shape[1])
    ring = np.minimum(np.floor(np.hypot(ky, kx) / 0.5 * _RINGS), _RINGS).astype(int).ravel()

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(ring, values.ravel(), minlength=_RINGS + 1)[:_RINGS]

    power = summed(np.abs(a) ** 2) * summed(np.abs(b) ** 2)
    return summed((a * b.conj()).real) / np.sqrt(power)


def main(session: Path, motion: Path, micrographs: Path, suffix: str = "") -> None:
    """Print the figures of all movies, and their means."""
    size = float(read_micrographs(session / "movies.zarr")["pixel_size"].values[0])
    whole, inner, correlations = [], [], []
    for name, (points, true) in read_movie_truth(session / "motion_truth.star").items():
        stem = Path(name).stem
        star = motion / f"{stem}.star"
        if not star.exists():
            continue
        told = size * read_displacements(star, points / size)
        error = residuals(told, true)
        inside = (np.abs(points / points.max(axis=0) - 0.5) < 0.4).all(axis=1)
        whole.append(error.mean())
        inner.append(error[:, inside].mean())
        truth = read_micrograph_image(session / "structures" / f"structure_{stem[-4:]}.mrc")
        image = read_micrograph_image(micrographs / f"{stem}{suffix}.mrc")
        correlations.append(ring_correlation(truth, image))
        shown = np.round(correlations[-1], 3).tolist()
        print(f"{stem}: residual {whole[-1]:.3f} A, inner {inner[-1]:.3f} A, rings {shown}")
    mean = np.round(np.mean(correlations, axis=0), 3).tolist()
    print(f"mean: residual {np.mean(whole):.3f} A, inner {np.mean(inner):.3f} A, rings {mean}")


if __name__ == "__main__":
    main(*(Path(each) for each in sys.argv[1:4]), *sys.argv[4:5])
