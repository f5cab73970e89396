"""The networks, one file each; innocent of devices, downloads, compilation and HTTP."""
