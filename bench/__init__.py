"""Luthier against what people use today: workloads, contestants, measurements, history. `python -m bench --help`.

Imports nothing of Luthier, torch or transformers at the top: contestants are processes of their own, and those of
the peers run in a venv without Luthier.
"""
