"""The report: one HTML file with everything in it, which opens without a network."""

from crystalforge.evaluation.report.write import write_report

__all__ = ["write_report"]
