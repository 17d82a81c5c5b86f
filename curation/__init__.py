"""From raw videos to WebDataset shards and Parquet manifests, stage by stage, on Ray."""
