-- What was found in one source and what became of it, in the order of time.
--
-- Parameters:
--   source              (required) the source_id, or a place where the source was found
-- Columns:
--   start_s             where it begins
--   end_s               where it ends
--   what                track (a face that was followed), clip, or problem
--   id                  the track_id, clip_id, or unit of work
--   identity_id         of a clip
--   result              of a clip: keep or reject; of a track: how many clips; of a problem: its reason
--   why                 why a clip was rejected, why parts of a track became no clip, what the problem was
WITH wanted AS (SELECT source_id FROM sources WHERE source_id = $source OR list_contains(uris, $source))
SELECT start_s, end_s, 'track' AS what, track_id AS id, NULL AS identity_id, num_clips || ' clips' AS result,
    array_to_string(reasons, ', ') AS why
FROM tracks WHERE source_id IN (FROM wanted)
UNION ALL
SELECT start_s, end_s, 'clip', clip_id, identity_id, decision,
    concat_ws(', ', nullif(array_to_string(failed_rules, ', '), ''), 'copy of ' || duplicate_of)
FROM clips WHERE source_id IN (FROM wanted)
UNION ALL
SELECT NULL, NULL, 'problem', stage || ' ' || unit, NULL, reason, message
FROM failures WHERE source_id IN (FROM wanted)
ORDER BY start_s NULLS FIRST, end_s DESC, what DESC, id
