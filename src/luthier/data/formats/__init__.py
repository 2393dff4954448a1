"""Formats of data, one file each (see `detect.py`): what the columns are called and what a row of them says."""
