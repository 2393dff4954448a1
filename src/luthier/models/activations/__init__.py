"""Which activations each layer keeps for the backward pass: levels, the plan, and its application to a model."""
