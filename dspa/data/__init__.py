"""What things are: Micrographs, Particles and Volumes as xarray schemas over Zarr."""
