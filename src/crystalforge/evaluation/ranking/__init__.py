"""Which of many crystals a chemist should look at first, and what speaks against each."""

from crystalforge.evaluation.ranking.flags import Evidence, Flag, Level, flags_of
from crystalforge.evaluation.ranking.ranking import ERROR, Standing, best_first

__all__ = ["ERROR", "Evidence", "Flag", "Level", "Standing", "best_first", "flags_of"]
