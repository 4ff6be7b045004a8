"""The daemon's HTTP API: probes and metrics for machines, /v1 under a token for people.

`app.create_app` makes the application from its collaborators, `server.ApiServer` serves it
inside the daemon's event loop. It decides nothing: it reads views and calls operations.
"""
