"""What trained models say of clips, the scores that follow, and how sure they are."""
