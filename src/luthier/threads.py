"""How CPU threads wait for each other."""

import os

SPIN = "GOMP_SPINCOUNT"


def wait_without_spinning() -> None:
    """Lets waiting threads give up their core soon. Has to be called before torch is imported.

    GNU's OpenMP, which torch's CPU builds use, lets a thread that waits at the end of a parallel loop spin for
    about a millisecond and more. On a machine that is shared, it then holds the core that the thread it waits for
    needs: with one other busy process on two cores, training was measured to fall from 250 to less than 10 tokens/s,
    and to 106 with this setting, which costs nothing on an idle machine (docs/measurements.md). A choice that the
    user has made (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`) stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPIN, "1000")
