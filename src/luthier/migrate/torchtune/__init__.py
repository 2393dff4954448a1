"""torchtune: its recipes' configurations, trees of `_component_` (up to 0.6)."""
