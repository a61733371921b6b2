"""How a run is computed: one loop for every method, which knows no method."""
