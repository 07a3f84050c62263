"""Many runs of one config file."""
