"""Parameter files, and the scripts that prepare data and ship models. Run, never imported."""
