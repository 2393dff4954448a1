"""A model as a graph for ONNX Runtime, by transformers' own exporter."""
