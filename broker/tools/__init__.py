"""What people run beside the broker: the demo, publishing, listening, benchmarks. Imported by `broker.cli` only."""
