"""Segmentation from a few labels, on cached features of a diffusion model."""

__version__ = "0.1.0"
