"""Beyond the paper: questions that it leaves open, answered where the exact truth is known."""
