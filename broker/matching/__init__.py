"""Which subscriptions an event is for: in memory, pure, at a cost that doesn't grow with subscriptions."""
