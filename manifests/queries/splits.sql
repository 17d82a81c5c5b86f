-- Size of every split of the kept clips.
--
-- Columns:
--   split               train, val or test
--   num_clips           kept clips
--   share               of all kept clips, 0 to 1
--   num_frames          their frames
--   hours               their length
--   num_identities      persons; no person may be in two splits (see split_leaks)
--   num_sources         sources; likewise
--   num_shards          files
--   shard_bytes         their size
WITH clip_sizes AS (
    SELECT
        split,
        count(*) AS num_clips,
        sum(num_frames)::BIGINT AS num_frames,
        round(sum(duration_s) / 3600, 6) AS hours,
        count(DISTINCT identity_id) AS num_identities,
        count(DISTINCT source_id) AS num_sources
    FROM clips
    WHERE decision = 'keep'
    GROUP BY split
),
shard_sizes AS (
    SELECT split, count(*) AS num_shards, sum(size_bytes)::BIGINT AS shard_bytes FROM shards GROUP BY split
)
SELECT
    split,
    num_clips,
    round(num_clips / sum(num_clips) OVER (), 4) AS share,
    num_frames,
    hours,
    num_identities,
    num_sources,
    coalesce(num_shards, 0) AS num_shards,
    coalesce(shard_bytes, 0) AS shard_bytes
FROM clip_sizes LEFT JOIN shard_sizes USING (split)
ORDER BY array_position(['train', 'val', 'test'], split), split
