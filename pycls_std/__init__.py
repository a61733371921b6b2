"""A config-driven runner for knowledge distillation of vision MLPs and tiny transformers."""
