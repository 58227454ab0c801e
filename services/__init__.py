"""The services. None imports another; they meet over NATS, in the language of `shared.contracts`."""
