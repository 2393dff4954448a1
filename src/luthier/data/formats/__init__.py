"""Formats of data, one file each: `COLUMNS`, `OPTIONAL` and `convert(record) -> Conversation` (see `detect.py`)."""
