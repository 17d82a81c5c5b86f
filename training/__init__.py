"""Training of the LivePortrait networks on curated shards."""
