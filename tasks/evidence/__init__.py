"""Matching of generated images and the statistics that a sceptic asks for."""
