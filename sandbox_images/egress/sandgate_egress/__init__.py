"""The egress proxy: lets sandboxes that may reach only some hosts reach those, by the names connections begin with.

It runs on the engine's host, outside every sandbox, with no privilege and nothing but Python's standard library. Packet
filter rules send it what limited sandboxes send to ports 80 and 443 of anywhere. It reads the name from the first
bytes, and connects to what that name resolves to, never to where the sandbox wanted to go: a name proves nothing about
the address that a program used it with. What no name may lead to (the host, other sandboxes, metadata services) the
packet filter refuses to its user id.
"""
