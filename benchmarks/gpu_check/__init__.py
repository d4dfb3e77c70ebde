"""All that must be known of a GPU, in one command: ``python -m benchmarks gpu_check``.

The process that is started never touches CUDA. Each section runs in a process of its own with a
limit of its own, so that a crash or an illegal address costs one section, and what it finds is
written to the JSON file line by line. ``--stand-in`` runs the same sections without a GPU, on the
arrays of `tests.stand_in`.
"""
