"""From a message to a committed event: the topology, the consumer, and acceptance, which both doors share."""
