"""The transfer layer: HTTP for backends, its limits, and one table from statuses to errors.

Above it are journal and cache, which decide what to fetch and send; below it only plugins and the base modules.
"""
