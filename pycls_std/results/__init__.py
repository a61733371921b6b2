"""Results: from run records to tables, plots and reports; does not import torch."""
