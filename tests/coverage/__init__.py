"""What the tests have shown of each operation of the API, from what passed over the wire: `python -m tests.coverage`."""
