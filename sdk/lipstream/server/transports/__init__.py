"""How clients reach a session of the server: WebSocket and WebRTC."""
