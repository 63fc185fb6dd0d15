"""What the tests of all roles share."""

from __future__ import annotations

CLIENT = "pi-client"
SERVERS = ["pi-01", "pi-02"]
ADDRESSES = {"pi-client": "10.77.78.100", "pi-01": "10.77.78.101", "pi-02": "10.77.78.102"}
