"""Ways to store frozen weights in few bits, one a file; base.py says what each must offer."""
