"""The processes of an installation, each a set of named workers around one event loop."""
