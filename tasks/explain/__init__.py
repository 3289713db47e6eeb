"""Everything that a run knows of one image."""
