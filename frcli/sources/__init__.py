"""Models that give next-token logits."""
