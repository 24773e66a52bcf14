"""The product: sandboxes. What a create means, what is recorded, and who starts and stops pods."""
