"""What people run now and then: what is left at Fly without an Agent, its removal, and a clean way out."""
