"""Decoder layers with their backward pass written by hand; see layer.py."""
