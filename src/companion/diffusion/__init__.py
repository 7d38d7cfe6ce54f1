"""Notebooks 04 and 05: mask-conditioned latent diffusion and the judgement of its images."""
