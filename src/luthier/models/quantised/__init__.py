"""Models whose frozen linear layers are stored in few bits."""
