"""Rows that are left out on purpose: duplicates, what the evaluation asks, wrong lengths and languages.

`cleaner.py` applies what the section `data.clean` asks for; every other file is one filter or a part of one.
"""

from luthier.data.clean.cleaner import Cleaner
from luthier.data.clean.said import said

__all__ = ["Cleaner", "said"]
