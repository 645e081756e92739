"""Talking to a Bacula or Bareos Director: console, catalog kept true, configuration for the other side."""
