"""The fuse layer: pyfuse3 requests in, calls of the vfs out. The only place that imports pyfuse3."""
