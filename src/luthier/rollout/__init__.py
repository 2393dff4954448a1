"""Answers from a model: engines that generate, and how a token is drawn."""
