"""crystalforge: from a wish for a material to a ranked, reproducible list of crystals."""

__version__ = "0.1.0"
