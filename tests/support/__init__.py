"""What the tests stand on: scripted servers, brokers, the manual clock, builders."""
