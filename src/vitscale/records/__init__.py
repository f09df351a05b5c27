"""What was seen: the schema, the writer and the reader of records, the contract on disk."""
