"""The training loss, its settings, its memory, and the judgements that it reads."""
