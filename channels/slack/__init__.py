"""The Slack channel: posts messages and threads through the Web API, or single messages through incoming webhooks."""
