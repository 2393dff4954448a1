"""Starts the contestant whose module is named on the command line."""

import importlib
import sys

from bench.protocol import serve

if __name__ == "__main__":
    module = importlib.import_module(f"bench.contestants.{sys.argv[1]}")
    serve(module.run)
