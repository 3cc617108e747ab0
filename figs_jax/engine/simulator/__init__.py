"""Cycle-level simulators of the arrays, which check the closed forms."""
