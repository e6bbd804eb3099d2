"""Endpoints: the addresses of servers, and the responses that they send."""
