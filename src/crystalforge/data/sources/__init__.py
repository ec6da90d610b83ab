"""Where crystals come from: each layout becomes a stream of records behind one interface.

>>> source = open_source(DataConfig(), Path("downloads"))     # doctest: +SKIP
>>> for record in source.records(): ...                       # doctest: +SKIP
"""

from crystalforge.crystal.reading.reasons import Unusable
from crystalforge.data.sources.base import Record, Source
from crystalforge.data.sources.open import open_source

__all__ = ["Record", "Source", "Unusable", "open_source"]
