"""LLaMA-Factory: its arguments (up to 0.9.6), and those of its second version (`USE_V1=1`)."""
