"""The web page: segment an image in a browser (`tedm demo`)."""
