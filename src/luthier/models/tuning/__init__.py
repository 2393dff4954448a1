"""Ways to choose which of a model's own weights are tuned, one file each; the file's name is that of the way."""
