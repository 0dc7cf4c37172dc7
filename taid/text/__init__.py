"""Text as people have it, made into examples of tokens and labels."""
