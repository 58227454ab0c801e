"""The roles and schemas that every service finds when it logs in."""
