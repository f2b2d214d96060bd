"""Control of running mounts: which there are, a socket to each, dead ones; above the FUSE adapter, below the commands."""
