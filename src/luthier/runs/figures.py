"""Numbers and times as people write them, the same in the terminal, the tables and the report."""

import math


def show(name: str, value: float | None) -> str:
    """A value as people write it: few digits, thousands apart, exponents for the very small and large."""
    if value is None or not math.isfinite(value):
        return "-" if value is None else str(value)
    if name == "tokens_per_second":
        return f"{value:,.0f}"
    if value != 0 and (name == "lr" or not 1e-3 <= abs(value) < 1e6):
        return exponent(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def exponent(value: float) -> str:
    """A value as mantissa and exponent without idle zeros, such as `1.5e-4`."""
    mantissa, power = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"


def duration(seconds: float) -> str:
    """A time span: `8 s`, `3:05 min` or `2:03:05 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{rest} s"
