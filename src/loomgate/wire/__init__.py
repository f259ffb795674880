"""JSON shapes, a leaf: msgspec Structs for everything that crosses the wire or is stored as a body.

What must live here: field names, defaults, limits as types, id forms, the state tables, event bytes.
What must not: I/O, SQL, HTTP, decisions about when something happens.
"""
