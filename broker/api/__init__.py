"""The REST API: the resources of `subscriptions`, and those that are about events and what became of them."""
