"""TBD by the room's owner."""
