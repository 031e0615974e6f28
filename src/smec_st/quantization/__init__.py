"""Fewer bytes per number: codes for compressed vectors, trained together with the map."""
