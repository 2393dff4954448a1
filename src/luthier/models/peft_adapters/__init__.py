"""Adapters that the library `peft` computes, on one model instance: put on, saved, read back, merged."""
