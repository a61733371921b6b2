"""What all other parts of the package share: data structures, registries, seeding, options, files."""
