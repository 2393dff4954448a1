"""A folder for a Raspberry Pi 5: what runs there, how fast it will be, and a test that runs there."""
