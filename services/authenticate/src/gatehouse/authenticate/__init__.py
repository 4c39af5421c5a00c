"""Authenticate: signs people in with their identity provider and ends their sessions.

Owns the browser's `<cookie_name>_authenticate`, CSRF and PKCE cookies on the authenticate host.
Serves HTTP only (`/.pomerium/*`, `/oauth2/callback`); no RPCs. Reads and writes `session.Session`
and `user.User` records in the databroker. Needed only when a session begins or ends.
"""
