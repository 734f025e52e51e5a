"""The hot path: a visitor on one side, a member on the other, an exchange between them."""
