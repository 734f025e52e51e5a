"""What looks at a response on its way to the visitor, or holds it."""
