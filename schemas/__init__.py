"""What is said: events, filters, identifiers and the bodies of the API. Pure; imports nothing else of Bode."""
