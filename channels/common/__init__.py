"""What several channels need; knows no channel."""
