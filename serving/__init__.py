"""The reward service: a Triton model repository, a launcher for one machine, and what fills the repository."""
