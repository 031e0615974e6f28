"""Hand a compressor on: models that load anywhere, the Hugging Face Hub, serving, and model cards."""
