"""Stages 7 to 11: scores, significance and claims. Nothing here imports a network."""
