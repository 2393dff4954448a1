"""Programs that run what was exported, a file each."""
