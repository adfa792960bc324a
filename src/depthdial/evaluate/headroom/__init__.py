"""What routing could win on a base, measured before anything is trained."""
