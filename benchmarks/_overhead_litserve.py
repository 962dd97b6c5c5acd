"""A LitServe echo as its documentation writes one: base64 in JSON. A module of its own, for LitServe
starts processes that import the class by name.
"""

from __future__ import annotations

import base64

import litserve


class Echo(litserve.LitAPI):  # type: ignore[misc]
    """Returns what it is given."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, str]) -> bytes:
        """Base64 to bytes."""
        return base64.b64decode(request["data"])

    def predict(self, x: bytes) -> bytes:
        """The null model."""
        return x

    def encode_response(self, output: bytes) -> dict[str, str]:
        """Bytes to base64."""
        return {"data": base64.b64encode(output).decode()}


def run(port: int) -> None:
    """Serve until terminated."""
    server = litserve.LitServer(Echo(), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, log_level="error", generate_client_file=False)
