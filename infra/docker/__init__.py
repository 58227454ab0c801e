"""The image of every process, and what its containers need beside `headrace serve`."""
