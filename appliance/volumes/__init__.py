"""Bytes of Bacula/Bareos volumes: blocks, records, labels, attributes, streams, bootstrap files."""
