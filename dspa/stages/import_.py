"""The import stages: what a project begins with."""

from __future__ import annotations

from dspa.stages.import_micrographs import MICROGRAPHS_STAGE, MOVIES_STAGE
from dspa.stages.import_particles import PARTICLES_STAGE
from dspa.stages.import_volume import VOLUME_STAGE

STAGES = (MICROGRAPHS_STAGE, MOVIES_STAGE, PARTICLES_STAGE, VOLUME_STAGE)
