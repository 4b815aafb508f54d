"""cli: what a person types. A command parses, calls one function, prints."""
