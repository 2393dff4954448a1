"""Layouts in which other tools store weights: they are decoded here, never made."""
