"""Wrappers that make any embedder of another library give compressed vectors, one module per library.

Each module needs the library that it is named after: ``pip install "smec-st[langchain]"``, ``[llama-index]``,
``[haystack]``, ``[chroma]``, ``[lancedb]`` or ``[sklearn]``.
"""
