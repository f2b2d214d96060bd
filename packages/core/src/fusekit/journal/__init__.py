"""The journal layer: dirty files and their way to the remote side; survives kill -9."""
