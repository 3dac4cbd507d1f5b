"""Everything of an installation on one machine: PostgreSQL, RabbitMQ and the processes of Bode as children.

Nothing outlives the process that started it: each server runs under a keeper that ends it, and each child is on a
leash. What a machine crash or a kill of keeper and all leaves behind, the next start on the same folder takes over.
"""
