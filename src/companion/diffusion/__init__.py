"""Stages 4 and 5: mask-conditioned latent diffusion and the judgement of its images."""
