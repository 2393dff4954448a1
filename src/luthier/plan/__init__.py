"""What a run will take, told before anything is loaded. Arithmetic on plain numbers, without torch."""
