"""The real machine: udev, systemd, kernel, system bus. `connect.connect()` gives all of it."""
