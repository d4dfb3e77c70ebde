"""The record of a project on disk: jobs, inputs, outputs, lineage, state."""
