"""What happens to an event: taken in, matched, delivered, recorded; and the processes and tools around that."""
