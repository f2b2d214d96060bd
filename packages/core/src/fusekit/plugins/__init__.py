"""The plugins layer: hook specifications, discovery by entry point, one pluggy manager a level of a mount.

The only place that imports pluggy. Above it the engine sees `Hooks`, a typed protocol; below it are the backends.
"""
