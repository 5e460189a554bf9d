"""No polling: those who wait for jobs hear of them when they are there."""
