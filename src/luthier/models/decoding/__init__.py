"""Decoding without transformers' forward: layers read from their parts, a cache of blocks, rows of any lengths."""
