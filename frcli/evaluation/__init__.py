"""How good experts and policies are on answers that are known."""
