"""The import stages: what a project begins with."""

from __future__ import annotations

from dspa.stages.imports.micrographs import MICROGRAPHS_STAGE
from dspa.stages.imports.movies import MOVIES_STAGE
from dspa.stages.imports.particles import PARTICLES_STAGE
from dspa.stages.imports.volume import VOLUME_STAGE

STAGES = (MICROGRAPHS_STAGE, MOVIES_STAGE, PARTICLES_STAGE, VOLUME_STAGE)
