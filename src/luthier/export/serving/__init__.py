"""Servers that load a folder in Hugging Face's layout: the command that serves it as it was trained."""
