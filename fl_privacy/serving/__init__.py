"""A trained model in use: exported to ONNX with its card, and served over HTTP without torch."""
