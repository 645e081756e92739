"""What a disk is, its states, enrolment and preparation. Knows nothing of slots."""
