"""Sources of crystals -> one columnar token store -> batches. Start at `ingest.ingest` and `store.TokenStore`."""
