"""Who may say what on the bus."""
