#!/usr/bin/env python3
"""A long way to a server on this machine: link.py PORT SERVER_PORT ROUND_TRIP_MS MEGABYTES_A_SECOND

Forwards connections of the loopback address. Each costs a round trip to open and each request one more, and each
carries so many megabytes a second at most: the kernel paces its socket and moves the bytes, this program hardly any.
"""
import os, socket, sys, threading, time

PIECE = 1 << 20
port, server, round_trip, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1000, float(sys.argv[4]) * 1e6


def requests(client, registry):
    """What is asked arrives a round trip late: half of it would be the answer's."""
    try:
        while asked := client.recv(PIECE):
            time.sleep(round_trip)
            registry.sendall(asked)
        registry.shutdown(socket.SHUT_WR)
    except OSError:
        registry.close()


def answers(registry, client):
    source, sink = os.pipe()
    try:
        while moved := os.splice(registry.fileno(), sink, PIECE):
            while moved:
                moved -= os.splice(source, client.fileno(), moved)
    except OSError:
        pass
    finally:
        os.close(source)
        os.close(sink)
        for end in (client, registry):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def connection(client):
    time.sleep(round_trip)
    client.setsockopt(socket.SOL_SOCKET, 47, int(rate))  # SO_MAX_PACING_RATE
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    registry = socket.create_connection(("127.0.0.1", server))
    registry.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=requests, args=(client, registry), daemon=True).start()
    answers(registry, client)


listener = socket.create_server(("127.0.0.1", port), backlog=128)
while True:
    client, _ = listener.accept()
    threading.Thread(target=connection, args=(client,), daemon=True).start()
