"""The program that a worker's process runs (`workers.py`); its argument is the number of its socket."""

import os
import sys
import threading
import time

_SECONDS_BETWEEN_LOOKS = 0.5


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, even in the midst of a request."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    from luthier.data.workers import serve

    serve(int(sys.argv[1]))
