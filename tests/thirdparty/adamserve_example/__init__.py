"""What adamserve does not have, added from outside."""
