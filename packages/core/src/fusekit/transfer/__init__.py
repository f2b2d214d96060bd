"""The transfer layer: HTTP, and the deadlines and retries around every hook call."""
