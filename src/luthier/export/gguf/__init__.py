"""GGUF, the file that llama.cpp and Ollama run: what is in it, and how it is written."""
