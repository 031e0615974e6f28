"""Codes that store compressed vectors in fewer bytes, optionally trained together with the map."""
