"""The reward service: Triton's model repository, what fills it, and a launcher for one machine."""
