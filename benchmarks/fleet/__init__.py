"""Several edges of one fleet under load while parts of it fail; and what many edges cost their store."""
