"""How good a model is: numbers measured on rows it has not been trained on."""
