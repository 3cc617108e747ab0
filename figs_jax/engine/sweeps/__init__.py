"""Sweeps over designs, sizes and patterns, evaluated and reduced on devices."""
