"""The vfs layer: inodes, names, handles and open files. A whole file system, testable without a kernel."""
