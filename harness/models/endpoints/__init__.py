"""Endpoints: the addresses of servers, and the responses that they send."""

from harness.models.endpoints.addresses import is_private
