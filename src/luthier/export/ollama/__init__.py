"""What Ollama reads beside a GGUF: a Modelfile, with the chat template in Go's template language."""
