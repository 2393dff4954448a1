"""Model folders in few bits that vLLM and SGLang load: the format of compressed-tensors."""
