"""Make the pictures of the guide: a small simulated session, by the commands of a user.

    python docs/site/pictures.py FOLDER                   # a simulated session, docs/guide/session
    python docs/site/pictures.py FOLDER MICROGRAPHS       # EMPIAR-10146, docs/guide/apoferritin

FOLDER becomes a project (ten minutes of one core); steps that are there already are not run again.
Pictures are reduced to less than 200 kB each. Those of the app are taken in Chromium, and are left
as they are where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable

GUIDE = Path(__file__).resolve().parents[1] / "guide"
LIMIT = 200_000  # bytes
DSPA = Path(sys.executable).with_name("dspa")
STEPS = (
    "simulate micrographs --micrographs 8 --width 1200 --height 1200 --particles 70 --snr 0.25"
    " --min-defocus 14000 --max-defocus 28000 --pixel-size 2",
    "ctf J1",
    "pick blob J2 --min-diameter 110 --max-diameter 180",
    "inspect-picks J3 --auto",
    "extract J4 --box 128 --crop 64",
    "class2d J5 --classes 16 --mask-diameter 200",
    "select2d J6 --auto",
    "abinitio J7 --starts 1 --mask-diameter 200",
    "refine J7 --volume J8 --symmetry D7 --mask-diameter 200",
)
APOFERRITIN = (
    "import micrographs {micrographs}/*.png --pixel-size 1.5 --voltage 300 --cs 2.7"
    " --amplitude-contrast 0.1",
    "ctf J1",
    "pick blob J2 --min-diameter 100 --max-diameter 140",
    "inspect-picks J3 --auto",
    "extract J4 --box 128 --crop 64",
    "class2d J5 --classes 20 --mask-diameter 170",
    "select2d J6 --auto",
    "abinitio J7 --mask-diameter 170 --symmetry O",
    "refine J7 --volume J8 --symmetry O --mask-diameter 170",
)
# Where a picture is in a project, and its name in the guide.
PICTURES = {
    "jobs/J002-*/pictures/ctf_00001.png": "ctf.png",
    "jobs/J004-*/pictures/micrograph_00004.png": "picks.jpg",
    "jobs/J006-*/pictures/class_averages.png": "class_averages.png",
    "jobs/J008-*/pictures/slices.png": "abinitio.png",
    "jobs/J009-*/pictures/slices.png": "refined.png",
    "jobs/J009-*/pictures/rendering.png": "rendering.png",
    "jobs/J009-*/pictures/fsc.png": "fsc.png",
    "jobs/J009-*/pictures/views.png": "views.png",
}
PAGES = {"": "app-jobs.jpg", "picks": "app-picks.jpg", "classes": "app-classes.jpg"}
# Of the table of jobs, if the page has one, the fourth from the top: 2D classification.
CHOOSE = """
for (const model of Bokeh.documents[0]._all_models.values())
  if (model.type === "DataTable") model.source.selected.indices = [3]
"""


def main(folder: str, micrographs: str = "") -> None:
    """Run what is missing, then collect the pictures."""
    project, steps = Path(folder), APOFERRITIN if micrographs else STEPS
    if not project.exists():
        subprocess.run([DSPA, "init", project], check=True)
    for number, step in enumerate(steps, 1):
        if not list(project.glob(f"jobs/J{number:03d}-*")):
            words = step.format(micrographs=micrographs).split()
            command = [DSPA, *words, "--cluster", "inline", "--project", project]
            subprocess.run(command, check=True)
    target = GUIDE / ("apoferritin" if micrographs else "session")
    target.mkdir(exist_ok=True)
    for pattern, name in PICTURES.items():
        found = sorted(project.glob(pattern))
        if not found:
            sys.exit(f"no picture {pattern} in {project}")
        reduce(Image.open(found[0]), target / name)
    if not micrographs and shutil.which("chromedriver"):
        photograph(project, target)


def reduce(image: Image.Image, path: Path) -> None:
    """Write a picture, smaller until it is below the limit."""
    image = image.convert("RGB")
    image.thumbnail((1200, 1200))
    for scale in (1.0, 0.85, 0.7, 0.55):
        size = (round(image.width * scale), round(image.height * scale))
        smaller = image.resize(size, Image.Resampling.LANCZOS)
        if path.suffix == ".jpg":
            smaller.save(path, quality=80)
        else:
            smaller.quantize(128).save(path, optimize=True)
        if path.stat().st_size < LIMIT:
            return


def photograph(project: Path, target: Path) -> None:
    """Take the pages of the app in a browser without a window."""
    from selenium import webdriver

    server = subprocess.Popen(
        [DSPA, "app", "--project", project],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1400,1000")
    driver = webdriver.Chrome(options=options)
    try:
        address = first_address(server.stdout or ())
        for page, name in PAGES.items():
            driver.get(address + page)
            time.sleep(10)
            driver.execute_script(CHOOSE)
            time.sleep(5)
            picture = target / "page.png"
            driver.save_screenshot(str(picture))
            image = Image.open(picture)
            image.paste(image.getpixel((700, 5)), (1000, 0, image.width, 36))  # the project's path
            reduce(image, target / name)
            picture.unlink()
    finally:
        driver.quit()
        server.terminate()


def first_address(lines: Iterable[str]) -> str:
    """Return the address that the app prints."""
    for line in lines:
        if found := re.search(r"http://\S+", line):
            return found[0]
    sys.exit("dspa app printed no address")


if __name__ == "__main__":
    main(*sys.argv[1:])
