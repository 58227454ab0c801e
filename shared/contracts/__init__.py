"""The published language: facts (`events`), questions (`questions`) and the states both carry (`states`).

Fields are added with defaults and never renamed; a changed meaning is a new type. This package knows no
transport, no database and no service.
"""
