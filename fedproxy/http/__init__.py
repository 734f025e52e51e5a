"""What HTTP means, whatever protocol carries it: no protocol's bytes."""
