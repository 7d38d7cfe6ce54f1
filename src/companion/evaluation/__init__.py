"""Notebooks 07 to 12: scores, significance, claims and errors. Nothing here imports a network."""
