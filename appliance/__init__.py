"""magbay: removable-media backup appliance."""

__version__ = "0.1.0"
