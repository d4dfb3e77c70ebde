"""The packages: all of dspa/, and kernels/ as dspa.kernels, which pyproject.toml cannot say."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dspa", "dspa.*"]), "dspa.kernels"],
    package_dir={"dspa.kernels": "kernels"},
)
