"""The YAML configuration: one schema that validates, documents and generates the example."""
