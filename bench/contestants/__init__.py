"""One module a contestant, each run as `python -m bench.contestants NAME` in the venv that has what it needs."""
