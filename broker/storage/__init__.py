"""What the broker keeps: events, deliveries, rejections, leases. All SQL of the broker stands in this package."""
