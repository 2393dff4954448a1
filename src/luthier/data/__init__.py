"""Data: from files to tokens, masks and packs. Start reading at `prepare.py`."""
