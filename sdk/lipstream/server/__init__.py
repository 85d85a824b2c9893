"""`lipstream serve`: sessions over WebSocket, a page to try them, health and metrics. Needs `lipstream[server]`.

In the data's order: `protocol.py` (what goes over the wire), `app.py` (who may come in), `live.py` (one session: its
clock, its queues), `pictures.py` (how a picture is packed), `references.py` (faces to speak through).
"""
