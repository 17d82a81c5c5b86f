-- All clips of one person, by source and time.
--
-- Parameters:
--   identity            (required) the identity_id
-- Columns:
--   clip_id             the clip
--   uri                 where its source was found
--   start_s             where in the source it begins
--   end_s               where it ends
--   decision            keep or reject
--   failed_rules        why it was rejected
--   duplicate_of        the kept clip of the same footage
--   split               of a kept clip
--   weight              how often it is drawn
--   shard               the file that holds it
SELECT
    clip_id,
    sources.uris[1] AS uri,
    clips.start_s,
    clips.end_s,
    decision,
    failed_rules,
    duplicate_of,
    split,
    weight,
    shard
FROM clips LEFT JOIN sources USING (source_id)
WHERE identity_id = $identity
ORDER BY clip_id
