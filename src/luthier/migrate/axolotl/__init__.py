"""Axolotl: its keys and those of its plugins (up to 0.18)."""
