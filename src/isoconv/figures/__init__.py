"""Pictures of evaluated runs."""
