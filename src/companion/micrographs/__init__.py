"""Stage 1: micrographs, their annotations, splits and patches."""
