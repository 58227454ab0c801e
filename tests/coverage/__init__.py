"""What tests have shown of each operation of the API, by what passed over the wire: `make coverage`."""
