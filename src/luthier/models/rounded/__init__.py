"""Models that are trained as if their linear layers were stored in few bits already (`qat`)."""
