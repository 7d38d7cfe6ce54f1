"""Notebook 01: micrographs, their annotations, splits and patches."""
