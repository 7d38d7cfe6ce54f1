"""Executable companion to arXiv:2606.02532: one folder per group of notebooks; see the README for what lies where."""
