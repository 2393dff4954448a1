"""Is what was written what was trained? It is loaded by a program that runs it, and both are asked the same."""
