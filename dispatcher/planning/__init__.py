"""Turns the rules that match an event into deliveries."""
