-- Usable sources that gave no clip to the data set, with what stood in the way.
--
-- Parameters:
--   limit               at most so many rows; default: 100
-- Columns:
--   uri                 where the source was found
--   source_id           its content
--   duration_s          its length
--   num_tracks          faces that were followed
--   num_clips           clips that were measured, all rejected
--   why                 reasons of tracks, rules of clips and problems, by name
WITH used AS (SELECT DISTINCT source_id FROM clips WHERE decision = 'keep'),
unused AS (
    SELECT source_id, uris[1] AS uri, duration_s FROM sources ANTI JOIN used USING (source_id) WHERE status = 'ok'
),
first AS (FROM unused ORDER BY duration_s DESC NULLS LAST, uri LIMIT coalesce($limit, 100)),
reasons AS (
    SELECT source_id, unnest(reasons) AS why FROM tracks WHERE source_id IN (SELECT source_id FROM first)
    UNION
    SELECT source_id, unnest(failed_rules) FROM clips WHERE source_id IN (SELECT source_id FROM first)
    UNION
    SELECT source_id, reason FROM failures WHERE source_id IN (SELECT source_id FROM first)
)
SELECT
    uri,
    source_id,
    duration_s,
    (SELECT count(*) FROM tracks WHERE tracks.source_id = first.source_id) AS num_tracks,
    (SELECT count(*) FROM clips WHERE clips.source_id = first.source_id) AS num_clips,
    (SELECT list(why ORDER BY why) FROM reasons WHERE reasons.source_id = first.source_id) AS why
FROM first
ORDER BY duration_s DESC NULLS LAST, uri
