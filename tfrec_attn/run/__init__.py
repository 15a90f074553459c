"""What a run stands on, its folder, and what goes on from it."""
