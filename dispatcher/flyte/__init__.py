"""All that knows Flyte's formats: event payloads, event files, FlyteAdmin."""
