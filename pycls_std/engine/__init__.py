"""How a run is computed: one training loop for all methods, independent of any of them."""
