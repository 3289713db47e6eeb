"""Generated images, and which training images they copy."""
