"""Builds the package and the image: `image/build --help`."""
