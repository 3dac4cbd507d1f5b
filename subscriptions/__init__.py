"""Who may hear what, changed by people: organisations, keys, grants, subscriptions, and the API over them."""
