"""Adds what setup.cfg cannot say: configs/ is the package vpt_jax.configs."""

from setuptools import find_packages, setup

setup(
  packages=[
    *find_packages(include=["vpt_jax", "vpt_jax.*"]),
    "vpt_jax.configs",
  ],
  package_dir={"vpt_jax.configs": "configs"},
)
