"""What was trained, in the forms that it is used in."""
