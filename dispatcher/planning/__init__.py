"""Turns decisions into deliveries."""
