"""From a committed delivery to an outcome that is recorded: when it goes, how it is sent, what came of it."""
