"""`lipstream serve`: sessions over WebSocket, a page to try them, health and metrics. Needs `lipstream[server]`.

In the data's order: `app.py` (routes, authentication, admission), `transports/` (WebSocket, WebRTC), `protocol.py`
(messages), `client_session.py` (limits, and what messages do), `realtime_session.py` (clock and queues of one session),
`frame_encoder.py` (pictures as JPEG or VP8), `references.py` (faces to speak through).
"""
