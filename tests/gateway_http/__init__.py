"""The gateway over HTTP when something goes wrong: odd requests, clients that leave, endpoints that break."""
