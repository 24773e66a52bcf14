"""The MCP gateway of a Sandgate sandbox: all servers of the sandbox behind one MCP endpoint.

It speaks both eras of the protocol on both sides. Messages stay the JSON bytes and plain dictionaries they came as;
only ids, names, colliding URIs, progress tokens and the envelope of an era are written anew.

Module map, from the outside in:

    __main__                 the process: two ports, one event loop
    lean_uvicorn, one_write  the HTTP server, without what is not needed of it
    control                  the control door: configuration, state, requests from the workspace
    configuration, fields    what PUT /config says, checked and frozen
    control_plane_requests   what the workspace and container tools ask of the control plane
    gateway                  builds the parts below
    asgi, security, sse      the little of HTTP that is needed
    downstream/              the gateway as clients see it
        endpoint             /mcp and /health; which era a request is of
        legacy, sessions     clients up to 2025-11-25: sessions, GET stream, resumption
        modern, parking      clients of 2026-07-28; calls that wait for the client's input
        listening, fanout, subscriptions     changes and updates, to whoever wants them
        calls                from a request to the server that answers it, and back
        reply                JSON or event stream
    aggregate, routes        one server made of all: names, lists, capabilities
    discovery, tool_search   three tools instead of all
    naming, tool_rules, uris, rewriting, cursors, headers, redaction, allowance, container_results     pure rules
    eras/                    outgoing requests, the probe, translation off the diagonal
    servers/                 fleet, server (life of one), catalogue (its lists)
    upstreams/               connections: stdio, door (workspace and socket), http, sse_connection, containers
                             correlation (whose message is whose), addresses (where remote servers may be)
    jsonrpc, framing, protocol, lists, callers      what everything above shares
"""

__version__ = "0.1.0"
