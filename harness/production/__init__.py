"""What production says of the models that it serves: feedback of users, and drift of requests.

Invariant: logs are imported, nothing is served here. Texts are masked before anything is written.
"""
