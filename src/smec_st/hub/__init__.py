"""Share a compressor: export to plain models, the Hugging Face Hub, checks of serving, and model cards."""
