"""Features of images: extraction from a backbone, and the store that heads read."""
