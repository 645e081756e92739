"""What stands on a disk that is none of ours, in words, from what udev saw of it. Nothing is opened for that."""

from __future__ import annotations

from appliance.host.api import BlockDevice

LUKS = "crypto_LUKS"
# Types as libblkid names them. What is not here is a file system, and called by its name.
_WORDS = {
    "LVM1_member": "belongs to an LVM volume group",
    "LVM2_member": "belongs to an LVM volume group",
    "zfs_member": "belongs to a ZFS pool",
    "bcache": "belongs to a bcache set",
    "drbd": "is replicated by DRBD",
    "VMFS_volume_member": "belongs to a VMware datastore (VMFS)",
    "BitLocker": "is encrypted with BitLocker",
    "swap": "holds swap space",
    "swsuspend": "holds the memory of a sleeping machine (swsuspend)",
    "DM_integrity": "belongs to a device mapper volume (DM_integrity)",
    "DM_verity_hash": "belongs to a device mapper volume (DM_verity_hash)",
    "DM_snapshot_cow": "belongs to a device mapper volume (DM_snapshot_cow)",
    "ceph_bluestore": "belongs to a Ceph cluster (ceph_bluestore)",
    "vdo": "belongs to a device mapper volume (vdo)",
}


def describe(device: BlockDevice) -> str:
    """Why *device* is no magazine, in words."""
    kind = device.fs_type
    if kind == LUKS:
        return "an unknown LUKS disk: not enrolled here"
    if kind in _WORDS:
        return f"{_WORDS[kind]}: not a magazine"
    if kind.endswith("_raid_member"):
        return f"is a member of a RAID ({kind}): not a magazine"
    if kind:
        return f"holds {kind}, no LUKS: not a magazine"
    if device.has_partitions:
        return "has partitions: not a magazine"
    return "blank, or holds nothing that can be told for certain: not a magazine yet"
