"""What passes between the floors: data structures, registries, seeds."""
