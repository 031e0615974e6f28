"""``smec-st serve``: a model behind OpenAI's ``/v1/embeddings``. Needs the extra: ``pip install "smec-st[serve]"``."""
