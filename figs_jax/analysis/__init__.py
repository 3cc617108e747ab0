"""Reads training runs: history, comparisons, pictures and reports."""
