"""Federated training of language models on text that may not be shared."""
