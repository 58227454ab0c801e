"""The plumbing every process stands on. It knows no service, no gateway and no business rule."""
