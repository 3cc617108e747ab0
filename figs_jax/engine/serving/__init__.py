"""Queues that decide which of many waiting queries an engine serves next."""
