"""The only door to the outside: udev, systemd, D-Bus, mounts, files, journal, clock. Knows nothing of backup."""
