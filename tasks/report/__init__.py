"""From scores to evidence and the page."""
