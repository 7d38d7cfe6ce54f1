"""Running the notebooks and showing them: what is fresh, one job, a run, the reference run, the book."""
