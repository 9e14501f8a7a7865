"""Who calls, and what they may do: tokens, logins, sessions, OpenID Connect."""
