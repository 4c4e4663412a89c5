"""What a job would take, before anything starts: fit, hours, dollars."""
