"""The program that a worker's process runs (`workers.py`); its argument is the number of its socket."""

import sys

from luthier.data.workers import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]))
