"""The way to what listens on this machine's loopback: `/proxy/{port}/{path}`, for HTTP and for WebSockets.

    target.py     which port and path a request means; nothing but loopback, never the server's own port
    headers.py    what of a request's and an answer's headers is passed on
    upstream.py   a connection to a port, and what is known of ports
    relay.py      an HTTP request and its answer; exchange.py is HTTP/1.1 itself, on h11
    websocket.py  a WebSocket, on websockets' protocol without I/O
    strays.py     requests of proxied pages that lost their prefix
    proxy.py      the application

Left out: HTTP/2, upgrades to anything but WebSockets, kept connections (a connect on loopback takes 0.1 ms).
"""
