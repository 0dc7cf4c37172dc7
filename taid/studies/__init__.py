"""The studies: one module for each, and what they share. Nothing of `taid` outside imports them."""
