"""The ground floor: what every layer needs and no domain owns (errors, files, progress)."""
