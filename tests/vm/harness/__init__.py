"""Boots the appliance in QEMU, plugs and pulls disks, runs commands in it. See docs/vm-testing.md."""

from tests.vm.harness.channels import ChannelError
from tests.vm.harness.disk import Disk
from tests.vm.harness.frozen import Frozen, freeze, frozen_guest, upgraded_guest
from tests.vm.harness.guest import CommandFailed, Guest, GuestTimeout, Result
from tests.vm.harness.image import CHECKOUT, build_package, cache_directory, image_path
from tests.vm.harness.machine import Firmware, Machine
from tests.vm.harness.tpm import Tpm

__all__ = [
    "CHECKOUT",
    "ChannelError",
    "CommandFailed",
    "Disk",
    "Firmware",
    "Frozen",
    "Guest",
    "GuestTimeout",
    "Machine",
    "Result",
    "Tpm",
    "build_package",
    "cache_directory",
    "freeze",
    "frozen_guest",
    "image_path",
    "upgraded_guest",
]
