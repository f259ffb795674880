"""The formats that clients speak, for endpoints that do not speak them themselves: see `front`."""
