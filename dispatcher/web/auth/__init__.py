"""Authentication and authorization: tokens, logins, sessions, OpenID Connect."""
