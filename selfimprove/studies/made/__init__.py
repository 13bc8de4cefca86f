"""What the small models of studies learn, a file a model."""
