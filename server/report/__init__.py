"""What people see of a run: one page, the terminal, TensorBoard."""
