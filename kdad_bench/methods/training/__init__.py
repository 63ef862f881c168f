"""What all student-teacher methods share while they learn: settings, chance, the frozen teacher, the loop, resuming."""
