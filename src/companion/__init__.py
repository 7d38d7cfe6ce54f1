"""Executable companion to arXiv:2606.02532.

Stages, in the order of the paper: `companion.micrographs` and `companion.phantom` (micrographs),
`companion.masks` (statistics and simulation), `companion.diffusion` (mask-conditioned latent diffusion),
`companion.detection` (Mask R-CNN), `companion.evaluation` (scores, significance, claims).
"""

__version__ = "0.1.0"
